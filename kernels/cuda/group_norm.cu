// GroupNorm, alone or fused with + t, GELU and + residual. x [N,P,C] with P = H*W, cut into tiles
// as columns.h says; bound by memory, the fused ones on their way there by the GELU.
//
// Forward: a pass takes mean and M2 (sum of squared deviations) of every channel of every tile, in
// two steps over what it holds in registers, so that a large mean costs nothing; a small kernel
// merges tiles and channels into the moments of a group (Chan, Golub, LeVeque 1979); a pass applies
// y = act((x - mean) a + b) + residual with a = rstd gamma, b = beta + t. Backward: a pass sums
// S1 = sum dz and S2 = sum dz xhat, dz = dy act'(z), per tile and channel; small kernels add up the
// tiles (dt = S1), the images (dbeta = sum S1, dgamma = sum S2) and the channels of a group; a pass
// computes dz again and dx = a dz - p - (x - mean) q.
#include "kernels/cuda/columns.h"
#include "kernels/cuda/gelu_math.h"
#include "kernels/cuda/reduce.h"

namespace tessera::TESSERA_CUDA {
namespace {

struct None {
  __device__ __forceinline__ static float value(float z) { return z; }
  __device__ __forceinline__ static float derivative(float) { return 1.0f; }
};
template <GeluForm form>
struct Gelu {
  __device__ __forceinline__ static float value(float z) { return gelu_of<form>(z); }
  __device__ __forceinline__ static float derivative(float z) {
    return gelu_derivative_of<form>(z);
  }
};

// ---- Moments

// partial [2,N,slices,C]: means, less the value of the image's first pixel, then M2s. Deviations
// from a pixel are small beside a mean that is large, and lose nothing to rounding.
template <class T, int V>
__global__ void channel_moments_kernel(Tiling tiling, const T* x, float* partial) {
  auto& scratch = shared_memory<ColumnScratch<V>>();
  const Tile<V> tile(tiling);
  Pack<T, V> values[kTilePixels];
  for (int k = 0; k < kTilePixels; ++k) values[k] = tile.load(x, k);
  float pivot[V] = {}, sum[V] = {}, m2[V] = {};
  if (tile.has_channel && tile.row < tiling.rows) {
    const auto pixel = Pack<T, V>::load(x + tile.n * tiling.P * tiling.C + tile.channel);
    for (int j = 0; j < V; ++j) pivot[j] = pixel[j];
  }
  for (int k = 0; k < kTilePixels; ++k)
    if (k < tile.count)
      for (int j = 0; j < V; ++j) sum[j] += values[k][j] - pivot[j];
  column_sums(sum, tiling.cols, tiling.rows, scratch);
  for (int j = 0; j < V; ++j) sum[j] /= float(tile.length);
  for (int k = 0; k < kTilePixels; ++k)
    if (k < tile.count)
      for (int j = 0; j < V; ++j) {
        const float deviation = (values[k][j] - pivot[j]) - sum[j];
        m2[j] += deviation * deviation;
      }
  column_sums(m2, tiling.cols, tiling.rows, scratch);
  if (tile.row != 0 || !tile.has_channel) return;
  float* to = partial + (tile.n * tiling.slices + tile.slice) * tiling.C + tile.channel;
  for (int j = 0; j < V; ++j) {
    to[j] = sum[j];
    to[j + tiling.N * tiling.slices * tiling.C] = m2[j];
  }
}

constexpr int kMergeThreads = 128;
struct MergeShared {
  BlockScratch<float, kMergeThreads> scratch;
};

// moments [N,G,2] from partial; a block for each group.
template <class T>
__global__ void group_moments_kernel(Tiling tiling, int per_group, float eps, const T* x,
                                     const float* partial, float* moments) {
  auto& shared = shared_memory<MergeShared>();
  const int64_t G = tiling.C / per_group, n = blockIdx.x / G, c = blockIdx.x % G * per_group;
  const T* first = x + n * tiling.P * tiling.C + c;
  const float* means = partial + n * tiling.slices * tiling.C + c;
  const float* m2s = means + tiling.N * tiling.slices * tiling.C;
  const int64_t entries = int64_t(tiling.slices) * per_group;
  const float size = float(tiling.P * per_group), pivot = to_float(first[0]);
  // Of entry i, a channel of a tile: its place, its mean less the pivot, its size.
  const auto place = [&](int64_t i) { return i / per_group * tiling.C + i % per_group; };
  const auto mean = [&](int64_t i) {
    return (to_float(first[i % per_group]) - pivot) + means[place(i)];
  };
  const auto pixels = [&](int64_t i) {
    const int64_t left = tiling.P - i / per_group * tiling.pixels;
    return float(left < tiling.pixels ? left : tiling.pixels);
  };
  float sum = 0, m2 = 0;
  for (int64_t i = threadIdx.x; i < entries; i += kMergeThreads) sum += pixels(i) * mean(i);
  const float offset = block_reduce(sum, Sum{}, shared.scratch) / size;
  for (int64_t i = threadIdx.x; i < entries; i += kMergeThreads) {
    const float away = mean(i) - offset;
    m2 += m2s[place(i)] + pixels(i) * (away * away);
  }
  m2 = block_reduce(m2, Sum{}, shared.scratch);
  if (threadIdx.x != 0) return;
  moments[2 * blockIdx.x] = pivot + offset;
  moments[2 * blockIdx.x + 1] = 1.0f / sqrtf(m2 / size + eps);
}

// ---- Forward

// x [N,P,C], moments [N,G,2], gamma and beta [C]; beta, t [N,C] and residual [N,P,C] may be null.
template <class T>
struct NormArgs {
  const T* x;
  const float *moments, *gamma, *beta;
  const T *t, *residual;
  int per_group;
};

// z = (x - mean) a + b of the channels of a thread.
template <int V>
struct Affine {
  float mean[V], a[V], b[V];

  template <class T>
  __device__ __forceinline__ Affine(const NormArgs<T>& in, int64_t n, int channel, int C) {
    for (int j = 0; j < V; ++j) {
      const int c = channel + j;
      const float* m = in.moments + (n * (C / in.per_group) + c / in.per_group) * 2;
      mean[j] = m[0];
      a[j] = m[1] * in.gamma[c];
      b[j] = in.beta ? in.beta[c] : 0.0f;
      if (in.t) b[j] += to_float(in.t[n * C + c]);
    }
  }
  __device__ __forceinline__ float operator()(int j, float x) const {
    return (x - mean[j]) * a[j] + b[j];
  }
};

template <class T, int V, class Act>
__global__ void norm_act_fwd_kernel(Tiling tiling, NormArgs<T> in, T* y) {
  const Tile<V> tile(tiling);
  if (tile.count == 0) return;
  const Affine<V> z(in, tile.n, tile.channel, tiling.C);
  Pack<T, V> x = tile.load(in.x, 0), out, residual;
  for (int k = 0; k < tile.count; ++k) {
    const auto next = tile.load(in.x, k + 1);  // on its way while this one is worked on
    if (in.residual) residual = tile.load(in.residual, k);
    for (int j = 0; j < V; ++j) {
      const float value = Act::value(z(j, x[j]));
      out.set(j, in.residual ? value + residual[j] : value);
    }
    out.store(y + tile.first + k * tile.step);
    x = next;
  }
}

// ---- Backward

// partial [2,N,slices,C]: sums of dz, then of dz xhat.
template <class T, int V, class Act>
__global__ void norm_act_sums_kernel(Tiling tiling, NormArgs<T> in, const T* dy, float* partial) {
  auto& scratch = shared_memory<ColumnScratch<V>>();
  const Tile<V> tile(tiling);
  float sum[V] = {}, product[V] = {};
  if (tile.count > 0) {
    const Affine<V> z(in, tile.n, tile.channel, tiling.C);
    Pack<T, V> x = tile.load(in.x, 0), up = tile.load(dy, 0);
    for (int k = 0; k < tile.count; ++k) {
      const auto next_x = tile.load(in.x, k + 1), next_up = tile.load(dy, k + 1);
      for (int j = 0; j < V; ++j) {
        const float dz = up[j] * Act::derivative(z(j, x[j]));
        sum[j] += dz;
        product[j] += dz * (x[j] - z.mean[j]);
      }
      x = next_x;
      up = next_up;
    }
  }
  column_sums(sum, tiling.cols, tiling.rows, scratch);
  column_sums(product, tiling.cols, tiling.rows, scratch);
  if (tile.row != 0 || !tile.has_channel) return;
  float* to = partial + (tile.n * tiling.slices + tile.slice) * tiling.C + tile.channel;
  for (int j = 0; j < V; ++j) {
    const int64_t group = tile.n * (tiling.C / in.per_group) + (tile.channel + j) / in.per_group;
    to[j] = sum[j];
    to[j + tiling.N * tiling.slices * tiling.C] = product[j] * in.moments[2 * group + 1];
  }
}

// Sums of an image: sums [2,N,C], and dt [N,C], the first half of them, unless it is null.
template <class T>
struct PutImage {
  float* sums;
  T* dt;
  bool accumulate;
  int64_t N;
  int C;
  __device__ void operator()(int64_t o, int c, float sum) const {
    sums[o * C + c] = sum;
    if (dt && o < N) put_at(dt + o * C + c, sum, accumulate);
  }
};

// Sums over the images: dbeta, then dgamma; null where not wanted.
struct PutParameters {
  float *dbeta, *dgamma;
  bool accumulate_dbeta, accumulate_dgamma;
  __device__ void operator()(int64_t o, int c, float sum) const {
    if (o == 0 && dbeta) put_at(dbeta + c, sum, accumulate_dbeta);
    if (o == 1 && dgamma) put_at(dgamma + c, sum, accumulate_dgamma);
  }
};

// p and q [N,G,2] of dx = a dz - p - (x - mean) q, from
// dx = rstd (gamma dz - mean_group(gamma dz) - xhat mean_group(gamma dz xhat)). A warp for each
// group.
__global__ void group_terms_kernel(int64_t N, int64_t P, int C, int per_group, const float* sums,
                                   const float* gamma, const float* moments, float* terms) {
  const int64_t G = C / per_group;
  const int64_t i = blockIdx.x * int64_t(kMergeThreads / 32) + threadIdx.x / 32;
  if (i >= N * G) return;  // whole warps
  const float* s1 = sums + i / G * C;
  float m1 = 0, m2 = 0;
  for (int d = int(threadIdx.x) % 32; d < per_group; d += 32) {
    const int c = int(i % G) * per_group + d;
    m1 += gamma[c] * s1[c];
    m2 += gamma[c] * s1[c + N * C];
  }
  m1 = warp_reduce(m1, Sum{});
  m2 = warp_reduce(m2, Sum{});
  if (threadIdx.x % 32 != 0) return;
  const float size = float(P * per_group), rstd = moments[2 * i + 1];
  terms[2 * i] = rstd * m1 / size;
  terms[2 * i + 1] = rstd * rstd * m2 / size;
}

// dx may be dy.
template <class T, int V, class Act>
__global__ void norm_act_bwd_kernel(Tiling tiling, NormArgs<T> in, const T* dy, const float* terms,
                                    T* dx, bool accumulate) {
  const Tile<V> tile(tiling);
  if (tile.count == 0) return;
  const Affine<V> z(in, tile.n, tile.channel, tiling.C);
  float p[V], q[V];
  for (int j = 0; j < V; ++j) {
    const int64_t group = tile.n * (tiling.C / in.per_group) + (tile.channel + j) / in.per_group;
    p[j] = terms[2 * group];
    q[j] = terms[2 * group + 1];
  }
  Pack<T, V> x = tile.load(in.x, 0), up = tile.load(dy, 0), out;
  for (int k = 0; k < tile.count; ++k) {
    const auto next_x = tile.load(in.x, k + 1), next_up = tile.load(dy, k + 1);
    T* const to = dx + tile.first + k * tile.step;
    if (accumulate) out = Pack<T, V>::load(to);
    for (int j = 0; j < V; ++j) {
      const float dz = up[j] * Act::derivative(z(j, x[j]));
      const float value = z.a[j] * dz - p[j] - (x[j] - z.mean[j]) * q[j];
      out.set(j, accumulate ? out[j] + value : value);
    }
    out.store(to);
    x = next_x;
    up = next_up;
  }
}

// ---- Launches

template <class T>
NormArgs<T> args_of(const GroupNormSpec& spec, const Tensor& x, const Tensor& moments,
                    const Tensor& gamma, const Tensor& beta, const Tensor& t,
                    const Tensor& residual) {
  return {x.data<T>(),
          moments.data<float>(),
          gamma.data<float>(),
          data_or_null<float>(beta),
          data_or_null<T>(t),
          data_or_null<T>(residual),
          int(x.dim(3) / spec.groups)};
}

template <class Act>
void norm_act_fwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x, const Tensor& gamma,
                  const Tensor& beta, const Tensor& t, const Tensor& residual, Tensor& y,
                  Tensor& moments) {
  const auto run = [&](auto zero, auto pack) {
    using T = decltype(zero);
    constexpr int V = decltype(pack)::value;
    const Tiling tiling = tiling_of(stream, x.dim(0), x.dim(1) * x.dim(2), x.dim(3), V);
    if (tiling.empty()) return;
    const auto in = args_of<T>(spec, x, moments, gamma, beta, t, residual);
    Tensor partial = Tensor::empty(stream, {2, tiling.N, tiling.slices, tiling.C});
    const cudaStream_t on = cuda_stream(stream);
    launch<channel_moments_kernel<T, V>>(
        {on, tiling.grid(), dim3(kTileThreads), sizeof(ColumnScratch<V>)}, tiling, in.x,
        partial.data<float>());
    launch<group_moments_kernel<T>>(
        {on, dim3(unsigned(tiling.N * spec.groups)), dim3(kMergeThreads), sizeof(MergeShared)},
        tiling, in.per_group, spec.eps, in.x, partial.data<float>(), moments.data<float>());
    launch<norm_act_fwd_kernel<T, V, Act>>({on, tiling.grid(), dim3(kTileThreads)}, tiling, in,
                                           y.data<T>());
  };
  with_packs(x, run, residual, y);
}

// Gradients of a sum over nothing.
void start_sums(Stream& stream, std::initializer_list<Grad> grads) {
  for (Grad grad : grads)
    if (grad && grad.mode == GradMode::Overwrite) grad.tensor.zero(stream);
}

template <class T, int V, class Act>
void norm_act_bwd(Stream& stream, const Tiling& tiling, const NormArgs<T>& in, const T* dy, Grad dx,
                  Grad dgamma, Grad dbeta, Grad dt) {
  const auto [N, P, C, slices] = std::tuple(tiling.N, tiling.P, tiling.C, tiling.slices);
  const int64_t groups = N * (C / in.per_group);
  const cudaStream_t on = cuda_stream(stream);
  Tensor partial = Tensor::empty(stream, {2, N, slices, C});
  Tensor sums = Tensor::empty(stream, {2, N, C});
  launch<norm_act_sums_kernel<T, V, Act>>(
      {on, tiling.grid(), dim3(kTileThreads), sizeof(ColumnScratch<V>)}, tiling, in, dy,
      partial.data<float>());
  sum_rows(stream, 2 * N, 2 * N * slices, slices, C, partial.data<float>(),
           PutImage<T>{sums.data<float>(), data_or_null<T>(dt.tensor),
                       dt.mode == GradMode::Accumulate, N, C});
  if (dgamma || dbeta)
    sum_rows(
        stream, 2, 2 * N, N, C, sums.data<float>(),
        PutParameters{data_or_null<float>(dbeta.tensor), data_or_null<float>(dgamma.tensor),
                      dbeta.mode == GradMode::Accumulate, dgamma.mode == GradMode::Accumulate});
  if (!dx) return;
  Tensor terms = Tensor::empty(stream, {groups, 2});
  launch<group_terms_kernel>(
      {on, dim3(unsigned(ceil_div(groups, kMergeThreads / 32))), dim3(kMergeThreads)}, N, P, C,
      in.per_group, sums.data<float>(), in.gamma, in.moments, terms.data<float>());
  launch<norm_act_bwd_kernel<T, V, Act>>({on, tiling.grid(), dim3(kTileThreads)}, tiling, in, dy,
                                         terms.data<float>(), dx.tensor.data<T>(),
                                         dx.mode == GradMode::Accumulate);
}

template <class Act>
void norm_act_bwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x, const Tensor& moments,
                  const Tensor& gamma, const Tensor& beta, const Tensor& t, const Tensor& dy,
                  Grad dx, Grad dgamma, Grad dbeta, Grad dt) {
  if (x.numel() == 0) return start_sums(stream, {dx, dgamma, dbeta, dt});
  const auto run = [&](auto zero, auto pack) {
    using T = decltype(zero);
    constexpr int V = decltype(pack)::value;
    const Tiling tiling = tiling_of(stream, x.dim(0), x.dim(1) * x.dim(2), x.dim(3), V);
    norm_act_bwd<T, V, Act>(stream, tiling, args_of<T>(spec, x, moments, gamma, beta, t, {}),
                            dy.data<T>(), dx, dgamma, dbeta, dt);
  };
  with_packs(x, run, dy, dx.tensor);
}

}  // namespace

void group_norm_fwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x, const Tensor& gamma,
                    const Tensor& beta, Tensor& y, Tensor& moments) {
  norm_act_fwd<None>(stream, spec, x, gamma, beta, {}, {}, y, moments);
}

void group_norm_bwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x,
                    const Tensor& moments, const Tensor& gamma, const Tensor& dy, Grad dx,
                    Grad dgamma, Grad dbeta) {
  // beta shifts z only, and without an activation z does not matter.
  norm_act_bwd<None>(stream, spec, x, moments, gamma, {}, {}, dy, dx, dgamma, dbeta, {});
}

void group_norm_gelu_fwd(Stream& stream, const NormGelu& spec, const Tensor& x, const Tensor& gamma,
                         const Tensor& beta, const Tensor& t, const Tensor& residual, Tensor& y,
                         Tensor& moments) {
  auto* run = spec.form == GeluForm::Exact ? norm_act_fwd<Gelu<GeluForm::Exact>>
                                           : norm_act_fwd<Gelu<GeluForm::Tanh>>;
  run(stream, spec.norm, x, gamma, beta, t, residual, y, moments);
}

void group_norm_gelu_bwd(Stream& stream, const NormGelu& spec, const Tensor& x,
                         const Tensor& moments, const Tensor& gamma, const Tensor& beta,
                         const Tensor& t, const Tensor& dy, Grad dx, Grad dgamma, Grad dbeta,
                         Grad dt) {
  using Run = void(Stream&, const GroupNormSpec&, const Tensor&, const Tensor&, const Tensor&,
                   const Tensor&, const Tensor&, const Tensor&, Grad, Grad, Grad, Grad);
  Run* run = spec.form == GeluForm::Exact ? norm_act_bwd<Gelu<GeluForm::Exact>>
                                          : norm_act_bwd<Gelu<GeluForm::Tanh>>;
  run(stream, spec.norm, x, moments, gamma, beta, t, dy, dx, dgamma, dbeta, dt);
}

}  // namespace tessera::TESSERA_CUDA
