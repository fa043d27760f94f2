// What goes between the 2x2 patches of a large image and the pixels of a small one: rearrangements
// of space and channels, nearest upsampling, pooling. Copies, sums and maxima of four, bound by
// memory. A thread has a patch and a few of its channels, 16 bytes of them where the shape allows.
//
// space_to_channel: channel c of the four pixels becomes channels 4c .. 4c+3 of one pixel. A thread
// takes as many channels as give a 16-byte pack there, 1 in f32 and 2 in bf16, so f32 has full
// packs for any C and bf16 for an even one; its four narrow accesses are coalesced with its
// neighbours'.
#include "kernels/cuda/index.h"

namespace tessera::TESSERA_CUDA {
namespace {

// The patch of a small image's pack i, of N channels: where its first pixel is in the large image.
template <int N>
struct PatchOf {
  Divisor by_packs;
  Patches patches;

  PatchOf(int64_t W, int64_t C) : by_packs(C / N), patches(W, C) {}

  __device__ __forceinline__ int64_t operator()(int64_t i) const {
    const int64_t c = by_packs.divide(i) * N;
    return patches.at(i, c);
  }
};

// Channels c .. c+N-1 of a patch become 4c .. 4c+4N-1 of its pixel, where V elements are accessed
// at once.
template <class T, int N, int V>
struct SpaceToChannel {
  PatchOf<N> patch_of;
  const T* x;
  T* y;
  bool accumulate;
  __device__ void operator()(int64_t i) const {
    const T* from = x + patch_of(i);
    Pack<T, V> out[4 * N / V];
    for (int p = 0; p < 4; ++p) {
      const Pack<T, N> in = Pack<T, N>::load(from + patch_of.patches.step(p));
      for (int j = 0; j < N; ++j) out[(4 * j + p) / V].values[(4 * j + p) % V] = in.values[j];
    }
    for (int v = 0; v < 4 * N / V; ++v) put_pack(y + i * 4 * N + v * V, out[v], accumulate);
  }
};

template <class T, int N, int V>
struct ChannelToSpace {
  PatchOf<N> patch_of;
  const T* x;
  T* y;
  bool accumulate;
  __device__ void operator()(int64_t i) const {
    Pack<T, V> in[4 * N / V];
    for (int v = 0; v < 4 * N / V; ++v) in[v] = Pack<T, V>::load(x + i * 4 * N + v * V);
    T* to = y + patch_of(i);
    for (int p = 0; p < 4; ++p) {
      Pack<T, N> out;
      for (int j = 0; j < N; ++j) out.values[j] = in[(4 * j + p) / V].values[(4 * j + p) % V];
      put_pack(to + patch_of.patches.step(p), out, accumulate);
    }
  }
};

// x and y, and `space`, the one of them that is the large image.
template <template <class, int, int> class Move>
void move(Stream& stream, const Tensor& x, Grad y, const Tensor& space) {
  const int64_t W = space.dim(2) / 2, C = space.dim(3), n = space.numel() / 4;
  const bool add = y.mode == GradMode::Accumulate;
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = kPack<T> / 4;
    const T* from = x.data<T>();
    T* to = y.tensor.data<T>();
    if (C % N == 0 && packs_fit<T, 4 * N>(0, from, to))
      return for_each(stream, n / N, Move<T, N, 4 * N>{{W, C}, from, to, add});
    for_each(stream, n, Move<T, 1, 1>{{W, C}, from, to, add});
  });
}

template <class T, int N>
struct UpsampleFwd {
  PatchOf<N> patch_of;
  const T* x;
  T* y;
  __device__ void operator()(int64_t i) const {
    const Pack<T, N> in = Pack<T, N>::load(x + i * N);
    T* to = y + patch_of(i);
    for (int p = 0; p < 4; ++p) in.store(to + patch_of.patches.step(p));
  }
};

template <class T, int N>
struct UpsampleBwd {
  PatchOf<N> patch_of;
  const T* dy;
  T* dx;
  bool accumulate;
  __device__ void operator()(int64_t i) const {
    T* to = dx + i * N;
    put_patch_sum<T, N>(to, dy + patch_of(i), patch_of.patches, accumulate);
  }
};

// Whether b, a later pixel of the patch than a, is the larger one.
__device__ __forceinline__ bool is_larger(float b, float a) { return b > a || b != b; }

template <class T, int N, Pooling pooling>
struct PoolFwd {
  PatchOf<N> patch_of;
  const T* x;
  T* y;
  __device__ void operator()(int64_t i) const {
    const T* from = x + patch_of(i);
    Pack<T, N> in[4];
    for (int p = 0; p < 4; ++p) in[p] = Pack<T, N>::load(from + patch_of.patches.step(p));
    float values[N];
    for (int j = 0; j < N; ++j) {
      float& value = values[j];
      value = in[0][j];
      if (pooling == Pooling::Average)
        value = 0.25f * ((value + in[1][j]) + (in[2][j] + in[3][j]));
      else
        for (int p = 1; p < 4; ++p)
          if (is_larger(in[p][j], value)) value = in[p][j];
    }
    Pack<T, N>::of(values).store(y + i * N);
  }
};

// x is null for an average.
template <class T, int N, Pooling pooling>
struct PoolBwd {
  PatchOf<N> patch_of;
  const T *x, *dy;
  T* dx;
  bool accumulate;
  __device__ void operator()(int64_t i) const {
    const int64_t first = patch_of(i);
    const Pack<T, N> up = Pack<T, N>::load(dy + i * N);
    int at[N] = {};  // the pixel that the maximum came from
    if constexpr (pooling == Pooling::Max) {
      Pack<T, N> best = Pack<T, N>::load(x + first);
      for (int p = 1; p < 4; ++p) {
        const Pack<T, N> in = Pack<T, N>::load(x + first + patch_of.patches.step(p));
        for (int j = 0; j < N; ++j)
          if (is_larger(in[j], best[j])) best.values[j] = in.values[j], at[j] = p;
      }
    }
    for (int p = 0; p < 4; ++p) {
      T* const to = dx + first + patch_of.patches.step(p);
      Pack<T, N> old;
      if (accumulate) old = Pack<T, N>::load(to);
      float values[N];
      for (int j = 0; j < N; ++j) {
        const float share = pooling == Pooling::Average ? 0.25f * up[j] : at[j] == p ? up[j] : 0.0f;
        values[j] = accumulate ? old[j] + share : share;
      }
      Pack<T, N>::of(values).store(to);
    }
  }
};

// Calls f.operator()<pooling>() for a pooling known at run time.
template <class F>
void with_pool(Pooling pooling, F&& f) {
  pooling == Pooling::Max ? f.template operator()<Pooling::Max>()
                          : f.template operator()<Pooling::Average>();
}

}  // namespace

void space_to_channel(Stream& stream, const Tensor& x, Grad y) {
  move<SpaceToChannel>(stream, x, y, x);
}

void channel_to_space(Stream& stream, const Tensor& x, Grad y) {
  move<ChannelToSpace>(stream, x, y, y.tensor);
}

void upsample_nearest_fwd(Stream& stream, const Tensor& x, Tensor& y) {
  const int64_t W = x.dim(2), C = x.dim(3), n = x.numel();
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.data<T>();
    T* to = y.data<T>();
    with_pack<kPack<T>>(packs_fit<T, kPack<T>>(C, from, to), [&](auto N) {
      for_each(stream, n / N, UpsampleFwd<T, N>{{W, C}, from, to});
    });
  });
}

void upsample_nearest_bwd(Stream& stream, const Tensor& dy, Grad dx) {
  const int64_t W = dx.tensor.dim(2), C = dy.dim(3), n = dx.tensor.numel();
  const bool add = dx.mode == GradMode::Accumulate;
  with_storage(dy.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = dy.data<T>();
    T* to = dx.tensor.data<T>();
    with_pack<kPack<T>>(packs_fit<T, kPack<T>>(C, from, to), [&](auto N) {
      for_each(stream, n / N, UpsampleBwd<T, N>{{W, C}, from, to, add});
    });
  });
}

void pool_fwd(Stream& stream, Pooling pooling, const Tensor& x, Tensor& y) {
  const int64_t W = y.dim(2), C = y.dim(3), n = y.numel();
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.data<T>();
    T* to = y.data<T>();
    with_pool(pooling, [&]<Pooling p>() {
      with_pack<kPack<T>>(packs_fit<T, kPack<T>>(C, from, to), [&](auto N) {
        for_each(stream, n / N, PoolFwd<T, N, p>{{W, C}, from, to});
      });
    });
  });
}

void pool_bwd(Stream& stream, Pooling pooling, const Tensor& x, const Tensor& dy, Grad dx) {
  const int64_t W = dy.dim(2), C = dy.dim(3), n = dy.numel();
  const bool add = dx.mode == GradMode::Accumulate;
  with_storage(dy.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T *in = pooling == Pooling::Max ? x.data<T>() : nullptr, *up = dy.data<T>();
    T* to = dx.tensor.data<T>();
    with_pool(pooling, [&]<Pooling p>() {
      with_pack<kPack<T>>(packs_fit<T, kPack<T>>(C, in, up, to), [&](auto N) {
        for_each(stream, n / N, PoolBwd<T, N, p>{{W, C}, in, up, to, add});
      });
    });
  });
}

}  // namespace tessera::TESSERA_CUDA
