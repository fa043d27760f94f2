// Pooling of 2x2 patches, bound by memory: a thread has a patch and a pack of its channels.
#include "kernels/cuda/index.h"

namespace tessera::TESSERA_CUDA {
namespace {

// The patch of a small image's pack i: where its first pixel is in the large image.
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

void pool_fwd(Stream& stream, Pooling pooling, const Tensor& x, Tensor& y) {
  const int64_t W = y.dim(2), C = y.dim(3), n = y.numel();
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = kPack<T>;
    const T* from = x.data<T>();
    T* to = y.data<T>();
    with_pool(pooling, [&]<Pooling p>() {
      if (packs_fit<T, N>(C, from, to))
        return for_each(stream, n / N, PoolFwd<T, N, p>{{W, C}, from, to});
      for_each(stream, n, PoolFwd<T, 1, p>{{W, C}, from, to});
    });
  });
}

void pool_bwd(Stream& stream, Pooling pooling, const Tensor& x, const Tensor& dy, Grad dx) {
  const int64_t W = dy.dim(2), C = dy.dim(3), n = dy.numel();
  const bool add = dx.mode == GradMode::Accumulate;
  with_storage(dy.dtype(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = kPack<T>;
    const T *in = pooling == Pooling::Max ? x.data<T>() : nullptr, *up = dy.data<T>();
    T* to = dx.tensor.data<T>();
    with_pool(pooling, [&]<Pooling p>() {
      if (packs_fit<T, N>(C, in, up, to))
        return for_each(stream, n / N, PoolBwd<T, N, p>{{W, C}, in, up, to, add});
      for_each(stream, n, PoolBwd<T, 1, p>{{W, C}, in, up, to, add});
    });
  });
}

}  // namespace tessera::TESSERA_CUDA
