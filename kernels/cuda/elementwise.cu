// Small operations, bound by memory: activations, sums, fill, and the running statistics of
// BatchNorm. Activations and sums take packs of 16 bytes where the shape allows; sums that are
// broadcast over the pixels of an image keep a thread to its channels (columns.h). Fill, which is
// for what is small, has one element a thread, statistics have a thread for each channel.
#include "kernels/cuda/activation_math.h"
#include "kernels/cuda/columns.h"

namespace tessera::TESSERA_CUDA {
namespace {

template <class T, int N, Activation act>
struct ActFwd {
  const T* x;
  T* y;
  __device__ void operator()(int64_t i) const {
    const Pack<T, N> in = Pack<T, N>::load(x + i * N);
    float values[N];
    for (int j = 0; j < N; ++j) values[j] = Act<act>::template value<T>(in[j]);
    Pack<T, N>::of(values).store(y + i * N);
  }
};

template <class T, int N, Activation act>
struct ActBwd {
  const T *x, *dy;
  T* dx;
  bool accumulate;
  __device__ void operator()(int64_t i) const {
    const Pack<T, N> in = Pack<T, N>::load(x + i * N), up = Pack<T, N>::load(dy + i * N);
    Pack<T, N> old;
    if (accumulate) old = Pack<T, N>::load(dx + i * N);
    float values[N];
    for (int j = 0; j < N; ++j) {
      const float value = up[j] * Act<act>::template derivative<T>(in[j]);
      values[j] = accumulate ? old[j] + value : value;
    }
    Pack<T, N>::of(values).store(dx + i * N);
  }
};

// y = a + b; y may be a or b.
template <class T, int N>
struct Add {
  const T *a, *b;
  T* y;
  __device__ void operator()(int64_t i) const {
    const Pack<T, N> left = Pack<T, N>::load(a + i * N), right = Pack<T, N>::load(b + i * N);
    float sum[N];
    for (int j = 0; j < N; ++j) sum[j] = left[j] + right[j];
    Pack<T, N>::of(sum).store(y + i * N);
  }
};

template <class T>
void add(Stream& stream, int64_t n, const T* a, const T* b, T* y) {
  with_pack<kPack<T>>(packs_fit<T, kPack<T>>(n, a, b, y), [&](auto N) {
    for_each(stream, n / N, Add<T, N>{a, b, y});
  });
}

constexpr int kTileBlocks = 4;  // of a multiprocessor

// y [N,P,C] = x + t [N,C]; y may be x.
template <class T, class B, int V>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    add_broadcast_fwd_kernel(Tiling tiling, const T* x, const B* t, T* y) {
  ptx::begin_kernel();
  const Tile<V> tile(tiling);
  if (tile.count == 0) return;
  constexpr int N = V < kPack<B> ? V : kPack<B>;
  Pack<B, N> term[V / N];
  for (int j = 0; j < V; j += N)
    term[j / N] = Pack<B, N>::load(t + tile.n * tiling.C + tile.channel + j);
  Pack<T, V> in = tile.load(x, 0);
  for (int k = 0; k < tile.count; ++k) {
    const auto next = tile.load(x, k + 1);  // on its way while this one is worked on
    float sum[V];
    for (int j = 0; j < V; ++j) sum[j] = in[j] + term[j / N][j % N];
    Pack<T, V>::of(sum).store(y + tile.first + k * tile.step);
    in = next;
  }
}

// Sums over the pixels of a tile: partial [N,slices,C].
template <class T, int V>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    sum_pixels_kernel(Tiling tiling, const T* x, float* partial) {
  ptx::begin_kernel();
  auto& scratch = shared_memory<ColumnScratch<V>>();
  const Tile<V> tile(tiling);
  Pack<T, V> in[kTilePixels];
  for (int k = 0; k < kTilePixels; ++k) in[k] = tile.load(x, k);
  float sum[V] = {};
  for (int k = 0; k < kTilePixels; ++k)
    for (int j = 0; j < V; ++j) sum[j] += in[k][j];
  column_sums(sum, tiling.cols, tiling.rows, scratch);
  if (tile.row != 0 || !tile.has_channel) return;
  float* to = partial + (tile.n * tiling.slices + tile.slice) * tiling.C + tile.channel;
  for (int j = 0; j < V; ++j) to[j] = sum[j];
}

template <class T>
struct Fill {
  T* x;
  float value;
  __device__ void operator()(int64_t i) const { x[i] = from_float<T>(value); }
};

struct UpdateStatistics {
  float eps, momentum, unbiased;  // unbiased: count / (count - 1)
  const float* moments;
  float *mean, *var;
  __device__ void operator()(int64_t c) const {
    const float rstd = moments[2 * c + 1];
    // Far below eps it has an error of eps's last place, nothing beside the eps of evaluation.
    const float difference = 1.0f / (rstd * rstd) - eps;
    const float biased = difference < 0.0f ? 0.0f : difference;  // NaN stays
    mean[c] = (1.0f - momentum) * mean[c] + momentum * moments[2 * c];
    var[c] = (1.0f - momentum) * var[c] + momentum * (unbiased * biased);
  }
};

struct MomentsOfStatistics {
  float eps;
  const float *mean, *var;
  float* moments;
  __device__ void operator()(int64_t c) const {
    moments[2 * c] = mean[c];
    moments[2 * c + 1] = 1.0f / sqrtf(var[c] + eps);
  }
};

}  // namespace

void activation_fwd(Stream& stream, Activation act, const Tensor& x, Tensor& y) {
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_activation(act, [&]<Activation a>() {
      const T* from = x.data<T>();
      T* to = y.data<T>();
      const int64_t n = x.numel();
      with_pack<kPack<T>>(packs_fit<T, kPack<T>>(n, from, to), [&](auto N) {
        for_each(stream, n / N, ActFwd<T, N, a>{from, to});
      });
    });
  });
}

void activation_bwd(Stream& stream, Activation act, const Tensor& x, const Tensor& dy, Grad dx) {
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_activation(act, [&]<Activation a>() {
      const T *from = x.data<T>(), *up = dy.data<T>();
      T* to = dx.tensor.data<T>();
      const int64_t n = x.numel();
      const bool add = dx.mode == GradMode::Accumulate;
      with_pack<kPack<T>>(packs_fit<T, kPack<T>>(n, from, up, to), [&](auto N) {
        for_each(stream, n / N, ActBwd<T, N, a>{from, up, to, add});
      });
    });
  });
}

void add_fwd(Stream& stream, const Tensor& a, const Tensor& b, Tensor& y) {
  with_storage(a.dtype(), [&](auto zero) {
    using T = decltype(zero);
    add(stream, a.numel(), a.data<T>(), b.data<T>(), y.data<T>());
  });
}

void add_bwd(Stream& stream, const Tensor& dy, Grad dx) {
  if (dx.mode == GradMode::Overwrite) {
    if (dy.bytes() > 0)
      stream.device().runtime().copy(stream.native(), dx.tensor.raw(), dy.raw(), dy.bytes());
    return;
  }
  with_storage(dy.dtype(), [&](auto zero) {
    using T = decltype(zero);
    T* to = dx.tensor.data<T>();
    add(stream, dy.numel(), static_cast<const T*>(to), dy.data<T>(), to);
  });
}

void add_broadcast_fwd(Stream& stream, const Tensor& x, const Tensor& t, Tensor& y) {
  const auto run = [&](auto zero, auto pack) {
    using T = decltype(zero);
    constexpr int V = decltype(pack)::value;
    const Tiling tiling = tiling_of(stream, x, V, kTileBlocks, kTileLoop);
    if (tiling.empty()) return;
    const auto add_term = [&](auto type_of_t) {
      using B = decltype(type_of_t);
      launch_next<add_broadcast_fwd_kernel<T, B, V>>(
          {cuda_stream(stream), tiling.grid(), dim3(kTileThreads)}, tiling, x.data<T>(),
          t.data<B>(), y.data<T>());
    };
    t.dtype() == DType::f32 ? add_term(float{}) : add_term(T{});
  };
  with_packs(x, run, t, y);
}

void add_broadcast_bwd_t(Stream& stream, const Tensor& dy, Grad dt) {
  const auto run = [&](auto zero, auto pack) {
    using T = decltype(zero);
    constexpr int V = decltype(pack)::value;
    const Tiling tiling = tiling_of(stream, dy, V, kTileBlocks, kTilePixels);
    if (tiling.empty()) return start_sum(stream, dt);
    Tensor partial = Tensor::empty(stream, {tiling.N, tiling.slices, tiling.C});
    launch_next<sum_pixels_kernel<T, V>>(
        {cuda_stream(stream), tiling.grid(), dim3(kTileThreads), sizeof(ColumnScratch<V>)}, tiling,
        dy.data<T>(), partial.data<float>());
    const auto put_sums = [&](auto type_of_dt) {
      using D = decltype(type_of_dt);
      sum_rows(stream, tiling.N, tiling.N * tiling.slices, tiling.slices, tiling.C,
               partial.data<float>(),
               PutSum<D>{dt.tensor.data<D>(), dt.mode == GradMode::Accumulate, tiling.C});
    };
    dt.tensor.dtype() == DType::f32 ? put_sums(float{}) : put_sums(T{});
  };
  with_packs(dy, run);
}

void fill(Stream& stream, Tensor& x, double value) {
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    for_each(stream, x.numel(), Fill<T>{x.data<T>(), float(value)});
  });
}

void batch_norm_update(Stream& stream, const BatchNormSpec& spec, int64_t count,
                       const Tensor& moments, Tensor& mean, Tensor& var) {
  for_each(stream, mean.numel(),
           UpdateStatistics{spec.eps, spec.momentum, float(double(count) / double(count - 1)),
                            moments.data<float>(), mean.data<float>(), var.data<float>()});
}

void batch_norm_moments(Stream& stream, const BatchNormSpec& spec, const Tensor& mean,
                        const Tensor& var, Tensor& moments) {
  for_each(
      stream, mean.numel(),
      MomentsOfStatistics{spec.eps, mean.data<float>(), var.data<float>(), moments.data<float>()});
}

}  // namespace tessera::TESSERA_CUDA
