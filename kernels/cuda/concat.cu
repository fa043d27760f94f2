// Joining channels, and the same fused with nearest upsampling of the first part. Bound by memory:
// a thread has one pack of channels of a pixel of y, or of a 2x2 patch of y's pixels where the
// first part is upsampled; 16 bytes where both parts' channels come in such packs, else one
// element. Fusing saves the upsampled tensor and its gradient.
#include "kernels/cuda/index.h"

namespace tessera::TESSERA_CUDA {
namespace {

// The channels A of a and B of b, joined. An index counts packs of N of them.
template <int N>
struct Joint {
  static constexpr int kElements = N;
  int64_t A, B;
  Divisor by_packs;

  Joint(int64_t A, int64_t B) : A(A), B(B), by_packs((A + B) / N) {}
};

// Calls f(Joint<N>) for packs of T where they fit, else for single elements.
template <class T, class F, class... Pointers>
void with_joint(int64_t A, int64_t B, F&& f, const Pointers*... pointers) {
  constexpr int N = kPack<T>;
  if (A % N == 0 && packs_fit<T, N>(B, pointers...)) return f(Joint<N>(A, B));
  f(Joint<1>(A, B));
}

template <class T, int N>
struct ConcatFwd {
  Joint<N> joint;
  const T *a, *b;
  T* y;
  __device__ void operator()(int64_t i) const {
    T* to = y + i * N;
    const int64_t c = joint.by_packs.divide(i) * N;
    const T* from = c < joint.A ? a + i * joint.A + c : b + i * joint.B + (c - joint.A);
    Pack<T, N>::load(from).store(to);
  }
};

template <class T, int N>
struct ConcatBwd {
  Joint<N> joint;
  const T* dy;
  T *da, *db;  // or null
  bool add_a, add_b;
  __device__ void operator()(int64_t i) const {
    const T* from = dy + i * N;
    const int64_t c = joint.by_packs.divide(i) * N;
    if (c < joint.A) {
      if (da) put_pack(da + i * joint.A + c, Pack<T, N>::load(from), add_a);
    } else if (db) {
      put_pack(db + i * joint.B + (c - joint.A), Pack<T, N>::load(from), add_b);
    }
  }
};

// Where the patches of y and of the second part are.
struct Images {
  Patches y, skip;
  Images(int64_t W, int64_t A, int64_t B) : y(W, A + B), skip(W, B) {}
};

template <class T, int N>
struct ConcatUpsampleFwd {
  Joint<N> joint;
  Images images;
  const T *low, *skip;
  T* y;
  __device__ void operator()(int64_t i) const {
    const int64_t c = joint.by_packs.divide(i) * N;
    T* to = y + images.y.at(i, c);
    if (c < joint.A) {
      const Pack<T, N> in = Pack<T, N>::load(low + i * joint.A + c);
      for (int p = 0; p < 4; ++p) in.store(to + images.y.step(p));
    } else {
      const T* from = skip + images.skip.at(i, c - joint.A);
      Pack<T, N> in[4];
      for (int p = 0; p < 4; ++p) in[p] = Pack<T, N>::load(from + images.skip.step(p));
      for (int p = 0; p < 4; ++p) in[p].store(to + images.y.step(p));
    }
  }
};

template <class T, int N>
struct ConcatUpsampleBwd {
  Joint<N> joint;
  Images images;
  const T* dy;
  T *dlow, *dskip;  // or null
  bool add_low, add_skip;
  __device__ void operator()(int64_t i) const {
    const int64_t c = joint.by_packs.divide(i) * N;
    const T* from = dy + images.y.at(i, c);
    if (c < joint.A) {
      if (dlow) put_patch_sum<T, N>(dlow + i * joint.A + c, from, images.y, add_low);
    } else if (dskip) {
      T* to = dskip + images.skip.at(i, c - joint.A);
      for (int p = 0; p < 4; ++p)
        put_pack(to + images.skip.step(p), Pack<T, N>::load(from + images.y.step(p)), add_skip);
    }
  }
};

// Channels of a gradient, which may be undefined, when both have C.
int64_t channels(const Grad& grad, const Grad& other, int64_t C) {
  return grad ? grad.tensor.dim(3) : C - other.tensor.dim(3);
}

}  // namespace

void concat_channels_fwd(Stream& stream, const Tensor& a, const Tensor& b, Tensor& y) {
  with_storage(y.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T *from_a = a.data<T>(), *from_b = b.data<T>();
    T* to = y.data<T>();
    with_joint<T>(
        a.dim(3), b.dim(3),
        [&](auto joint) {
          constexpr int N = decltype(joint)::kElements;
          for_each(stream, y.numel() / N, ConcatFwd<T, N>{joint, from_a, from_b, to});
        },
        from_a, from_b, to);
  });
}

void concat_channels_bwd(Stream& stream, const Tensor& dy, Grad da, Grad db) {
  with_storage(dy.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = dy.data<T>();
    T *to_a = data_or_null<T>(da.tensor), *to_b = data_or_null<T>(db.tensor);
    const bool add_a = da.mode == GradMode::Accumulate, add_b = db.mode == GradMode::Accumulate;
    with_joint<T>(
        channels(da, db, dy.dim(3)), channels(db, da, dy.dim(3)),
        [&](auto joint) {
          constexpr int N = decltype(joint)::kElements;
          for_each(stream, dy.numel() / N, ConcatBwd<T, N>{joint, from, to_a, to_b, add_a, add_b});
        },
        from, to_a, to_b);
  });
}

void concat_upsample_fwd(Stream& stream, const Tensor& low, const Tensor& skip, Tensor& y) {
  with_storage(y.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T *from_low = low.data<T>(), *from_skip = skip.data<T>();
    T* to = y.data<T>();
    const Images images(low.dim(2), low.dim(3), skip.dim(3));
    with_joint<T>(
        low.dim(3), skip.dim(3),
        [&](auto joint) {
          constexpr int N = decltype(joint)::kElements;
          for_each(stream, y.numel() / 4 / N,
                   ConcatUpsampleFwd<T, N>{joint, images, from_low, from_skip, to});
        },
        from_low, from_skip, to);
  });
}

void concat_upsample_bwd(Stream& stream, const Tensor& dy, Grad dlow, Grad dskip) {
  const int64_t A = channels(dlow, dskip, dy.dim(3)), B = dy.dim(3) - A;
  with_storage(dy.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = dy.data<T>();
    T *low = data_or_null<T>(dlow.tensor), *skip = data_or_null<T>(dskip.tensor);
    const bool add_low = dlow.mode == GradMode::Accumulate,
               add_skip = dskip.mode == GradMode::Accumulate;
    const Images images(dy.dim(2) / 2, A, B);
    with_joint<T>(
        A, B,
        [&](auto joint) {
          constexpr int N = decltype(joint)::kElements;
          for_each(stream, dy.numel() / 4 / N,
                   ConcatUpsampleBwd<T, N>{joint, images, from, low, skip, add_low, add_skip});
        },
        from, low, skip);
  });
}

}  // namespace tessera::TESSERA_CUDA
