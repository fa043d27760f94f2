// Channels joined, and columns of a matrix apart, bound by memory. A thread has one pack of 16
// bytes of the joint tensor where all parts come in such packs, else one element. Fused with
// nearest upsampling of the first part, which saves the upsampled tensor and its gradient, it has
// a pack of each pixel of a 2x2 patch.
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

constexpr int kMostParts = 16;  // of a launch

// Parts of a matrix that follow each other: [rows, end - the end before] each, or null.
template <class T>
struct Parts {
  T* data[kMostParts];
  int64_t end[kMostParts];

  // f(part, its element at row and column); the column is counted from the first part's.
  template <class F>
  __device__ __forceinline__ void at(int64_t row, int64_t column, const F& f) const {
    int64_t begin = 0;
    int part = 0;
    for (; column >= end[part]; ++part) begin = end[part];
    f(data[part], row * (end[part] - begin) + (column - begin));
  }
};

template <class T, int N>
struct SplitFwd {
  Divisor by_packs;
  const T* x;
  int64_t C;
  Parts<T> parts;
  __device__ void operator()(int64_t i) const {
    const int64_t column = by_packs.divide(i) * N;
    const auto values = Pack<T, N>::load(x + i * C + column);
    parts.at(i, column, [&](T* part, int64_t element) { values.store(part + element); });
  }
};

template <class T, int N>
struct SplitBwd {
  Divisor by_packs;
  Parts<const T> parts;
  T* dx;
  int64_t C;
  bool accumulate;
  __device__ void operator()(int64_t i) const {
    const int64_t column = by_packs.divide(i) * N;
    T* const to = dx + i * C + column;
    parts.at(i, column, [&](const T* part, int64_t element) {
      if (part || !accumulate)
        put_pack(to, part ? Pack<T, N>::load(part + element) : Pack<T, N>{}, accumulate);
    });
  }
};

// Calls f(packs, parts, first column, columns) for as many parts as a launch takes, until all are
// done. packs: how many neighbours are moved at once.
template <class T, class F>
void each_launch(std::span<const int64_t> widths, const std::vector<T*>& data, const void* matrix,
                 int64_t C, const F& f) {
  using Element = std::remove_const_t<T>;
  constexpr int N = kPack<Element>;
  bool packed = packs_fit<Element, N>(C, static_cast<const Element*>(matrix));
  for (size_t i = 0; i < widths.size(); ++i)
    packed = packed && packs_fit<Element, N>(widths[i], data[i]);
  int64_t first = 0;
  for (size_t i = 0; i < widths.size(); i += kMostParts) {
    Parts<T> parts{};
    int64_t columns = 0;
    for (size_t j = 0; j < kMostParts && i + j < widths.size(); ++j) {
      parts.data[j] = data[i + j];
      parts.end[j] = columns += widths[i + j];
    }
    with_pack<N>(packed, [&](auto pack) { f(pack, parts, first, columns); });
    first += columns;
  }
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

void split_columns_fwd(Stream& stream, const Tensor& x, std::span<Tensor> y) {
  const int64_t rows = x.dim(0), C = x.dim(1);
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.data<T>();
    std::vector<T*> data;
    std::vector<int64_t> widths;
    for (Tensor& part : y) data.push_back(part.data<T>()), widths.push_back(part.dim(1));
    each_launch(widths, data, from, C,
                [&](auto pack, const Parts<T>& parts, int64_t first, int64_t columns) {
                  constexpr int N = decltype(pack)::value;
                  for_each(stream, rows * columns / N,
                           SplitFwd<T, N>{Divisor(columns / N), from + first, C, parts});
                });
  });
}

void split_columns_bwd(Stream& stream, std::span<const int64_t> widths, std::span<const Tensor> dy,
                       Grad dx) {
  const int64_t rows = dx.tensor.dim(0), C = dx.tensor.dim(1);
  with_storage(dx.tensor.dtype(), [&](auto zero) {
    using T = decltype(zero);
    T* to = dx.tensor.data<T>();
    std::vector<const T*> data;
    for (const Tensor& part : dy) data.push_back(data_or_null<T>(part));
    each_launch(widths, data, to, C,
                [&](auto pack, const Parts<const T>& parts, int64_t first, int64_t columns) {
                  constexpr int N = decltype(pack)::value;
                  for_each(stream, rows * columns / N,
                           SplitBwd<T, N>{Divisor(columns / N), parts, to + first, C,
                                          dx.mode == GradMode::Accumulate});
                });
  });
}

}  // namespace tessera::TESSERA_CUDA
