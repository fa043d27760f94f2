// GroupNorm, alone or fused with + t, an activation and + residual. x [N,P,C] with P = H*W, cut
// into tiles as columns.h says; bound by memory, the fused ones on their way there by the
// activation.
//
// Forward: a pass takes mean and M2 (sum of squared deviations) of every channel of every tile, in
// two steps over what it holds in registers, so that a large mean costs nothing; a small kernel
// merges tiles and channels into the moments of a group (Chan, Golub, LeVeque 1979); a pass applies
// y = act((x - mean) a + b) + residual with a = rstd gamma, b = beta + t. Backward: a pass sums
// S1 = sum dz and S2 = sum dz xhat, dz = dy act'(z), per tile and channel; a small kernel adds up
// the tiles of an image (dt = S1) and the channels of a group; a pass computes dz again and
// dx = a dz - p - (x - mean) q, while blocks of their own add up the images (dbeta = sum S1,
// dgamma = sum S2). Convolutions may have taken the sums of the first pass in either direction
// (norm.h).
#include "kernels/cuda/columns.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/reduce.h"

namespace tessera::TESSERA_CUDA {
namespace {

// Blocks that a multiprocessor holds at a time, by registers: the gradients of bf16 through an
// activation and their moments take 65 to 80 (a bound on these would cost spills), all others 64 at
// most.
constexpr int kFwdBlocks = 4;
template <class T, class Act>
constexpr int kBwdBlocks = sizeof(T) == 2 && !std::is_same_v<Act, None> ? 3 : 4;
template <class T>
constexpr int kMomentBlocks = sizeof(T) == 2 ? 3 : 4;

// ---- Moments

// partial [2,N,slices,C]: means, less the value of the image's first pixel, then M2s. Deviations
// from a pixel are small beside a mean that is large, and lose nothing to rounding.
template <class T, int V>
__global__ void __launch_bounds__(kTileThreads)
    channel_moments_kernel(Tiling tiling, const T* x, float* partial) {
  ptx::begin_kernel();
  auto& scratch = shared_memory<ColumnScratch<V>>();
  const Tile<V> tile(tiling);
  Pack<T, V> values[kTilePixels];
  for (int k = 0; k < kTilePixels; ++k) values[k] = tile.load(x, k);
  float pivot[V] = {}, sum[V] = {}, m2[V] = {};
  if (tile.has_channel) {
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

// Slices of neighbouring pixels (columns.h), whose means are less the value of their image's first
// pixel.
template <class T>
struct Slices {
  const T* x;
  int64_t P;
  int C, pixels_of_one, parts;

  __device__ __forceinline__ float base(int64_t n, int64_t c) const {
    return to_float(x[n * P * C + c]);
  }
  __device__ __forceinline__ int64_t pixels(int64_t part) const {
    const int64_t left = P - part * pixels_of_one;
    return left < pixels_of_one ? left : pixels_of_one;
  }
};
// Tiles of a convolution.
struct Tiles {
  TileParts tiles;
  int parts;

  __device__ __forceinline__ float base(int64_t, int64_t) const { return 0; }
  __device__ __forceinline__ int64_t pixels(int64_t part) const { return tiles.pixels(int(part)); }
};

// moments [N,G,2] from partial; a block for each group.
template <class Parts>
__global__ void group_moments_kernel(Parts parts, int64_t N, int64_t P, int C, int per_group,
                                     float eps, const float* partial, float* moments) {
  ptx::begin_kernel();
  auto& shared = shared_memory<MergeShared>();
  const int64_t G = C / per_group, n = blockIdx.x / G, c = blockIdx.x % G * per_group;
  const float* means = partial + n * parts.parts * C + c;
  const float* m2s = means + N * parts.parts * C;
  const int64_t entries = int64_t(parts.parts) * per_group;
  const float size = float(P * per_group), pivot = parts.base(n, c) + means[0];
  // Of entry i, a channel of a part: its place, its mean less the pivot, its size.
  const auto place = [&](int64_t i) { return i / per_group * C + i % per_group; };
  const auto mean = [&](int64_t i) {
    return (parts.base(n, c + i % per_group) - pivot) + means[place(i)];
  };
  const auto pixels = [&](int64_t i) { return float(parts.pixels(i / per_group)); };
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

template <class Parts>
void merge_parts(Stream& stream, const Parts& parts, const GroupNormSpec& spec, int64_t P,
                 const Tensor& partial, Tensor& moments) {
  const int64_t N = partial.dim(1), C = partial.dim(3);
  launch_next<group_moments_kernel<Parts>>({cuda_stream(stream), dim3(unsigned(N * spec.groups)),
                                            dim3(kMergeThreads), sizeof(MergeShared)},
                                           parts, N, P, int(C), int(C / spec.groups), spec.eps,
                                           partial.data<float>(), moments.data<float>());
}

// ---- Forward

template <class T, int V, class Act>
__global__ void __launch_bounds__(kTileThreads, kFwdBlocks)
    norm_act_fwd_kernel(Tiling tiling, NormArgs<T> in, T* y) {
  ptx::begin_kernel();
  const Tile<V> tile(tiling);
  if (tile.count == 0) return;
  const Affine<V> z(in, tile.n, tile.channel, tiling.C);
  Pack<T, V> x = tile.load(in.x, 0), residual;
  for (int k = 0; k < tile.count; ++k) {
    const auto next = tile.load(in.x, k + 1);  // on its way while this one is worked on
    if (in.residual) residual = tile.load(in.residual, k);
    float values[V];
    for (int j = 0; j < V; ++j) values[j] = Act::template value<T>(z(j, x[j]));
    if (in.residual)
      for (int j = 0; j < V; ++j) values[j] += residual[j];
    Pack<T, V>::of(values).store(y + tile.first + k * tile.step);
    x = next;
  }
}

// ---- Backward

// partial [2,N,slices,C]: sums of dz, then of dz xhat.
template <class T, int V, class Act>
__global__ void __launch_bounds__(kTileThreads)
    norm_act_sums_kernel(Tiling tiling, NormArgs<T> in, const T* dy, float* partial) {
  ptx::begin_kernel();
  auto& scratch = shared_memory<ColumnScratch<V>>();
  const Tile<V> tile(tiling);
  float sum[V] = {}, product[V] = {};
  if (tile.count > 0) {
    const Affine<V> z(in, tile.n, tile.channel, tiling.C);
    Pack<T, V> x = tile.load(in.x, 0), up = tile.load(dy, 0);
    for (int k = 0; k < tile.count; ++k) {
      const auto next_x = tile.load(in.x, k + 1), next_up = tile.load(dy, k + 1);
      for (int j = 0; j < V; ++j) {
        const float dz = up[j] * Act::template derivative<T>(z(j, x[j]));
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
  in.template for_groups<V>(in.moments, tile.n, tile.channel, [&](int j, float, float rstd) {
    to[j] = sum[j];
    to[j + tiling.N * tiling.slices * tiling.C] = product[j] * rstd;
  });
}

// Sums over the images: dbeta, then dgamma; null where not wanted.
struct PutParameters {
  float *dbeta, *dgamma;
  bool accumulate_dbeta, accumulate_dgamma;
  __device__ void operator()(int64_t o, int c, float sum) const {
    if (o == 0 && dbeta) put_at(dbeta + c, sum, accumulate_dbeta);
    if (o == 1 && dgamma) put_at(dgamma + c, sum, accumulate_dgamma);
  }
};

// From partial [2,N,parts,C]: sums [2,N,C], S1 and S2 of each image and channel; dt [N,C] = or +=
// S1 unless null; and p and q [N,G,2] of dx = a dz - p - (x - mean) q, which is dx = rstd (gamma dz
// - mean_group(gamma dz) - xhat mean_group(gamma dz xhat)). A block for each group of each image.
template <class T>
struct GroupSums {
  int64_t N, P, parts;
  int C, per_group, cols;  // cols: channels that a block adds up at a time
  const float *partial, *gamma, *moments;
  float *sums, *terms;
  T* dt;
  bool accumulate_dt;
};

template <class T>
__global__ void group_sums_kernel(GroupSums<T> a) {
  ptx::begin_kernel();
  auto& scratch = shared_memory<ColumnScratch<2>>();
  const int64_t G = a.C / a.per_group, n = blockIdx.x / G, second = a.N * a.parts * a.C;
  const int first = int(blockIdx.x % G) * a.per_group;
  const int rows = kTileThreads / a.cols;
  const int row = int(threadIdx.x) / a.cols, col = int(threadIdx.x) % a.cols;
  float m1 = 0, m2 = 0;
  for (int begin = 0; begin < a.per_group; begin += a.cols) {
    const int c = first + begin + col;
    const bool mine = begin + col < a.per_group;
    float sum[2] = {};
    for (int64_t part = row; mine && part < a.parts; part += rows) {
      const float* from = a.partial + (n * a.parts + part) * a.C + c;
      sum[0] += from[0];
      sum[1] += from[second];
    }
    column_sums(sum, a.cols, rows, scratch);
    if (row != 0 || !mine) continue;
    a.sums[n * a.C + c] = sum[0];
    a.sums[(a.N + n) * a.C + c] = sum[1];
    if (a.dt) put_at(a.dt + n * a.C + c, sum[0], a.accumulate_dt);
    m1 += a.gamma[c] * sum[0];
    m2 += a.gamma[c] * sum[1];
  }
  m1 = warp_reduce(m1, Sum{});  // row 0 is in the first warp
  m2 = warp_reduce(m2, Sum{});
  if (threadIdx.x != 0) return;
  const float size = float(a.P * a.per_group), rstd = a.moments[2 * blockIdx.x + 1];
  a.terms[2 * blockIdx.x] = rstd * m1 / size;
  a.terms[2 * blockIdx.x + 1] = rstd * rstd * m2 / size;
}

// dx may be dy. The last blocks of a grid's first row add up the parameters' gradients.
template <class T, int V, class Act>
__global__ void __launch_bounds__(kTileThreads)
    norm_act_bwd_kernel(Tiling tiling, NormArgs<T> in, const T* dy, const float* terms, T* dx,
                        bool accumulate, RowSums<float, 1> images, PutParameters parameters) {
  ptx::begin_kernel();
  if (const unsigned tiles = unsigned(tiling.N) * unsigned(tiling.slices); blockIdx.x >= tiles) {
    if (blockIdx.y == 0)
      images.block(blockIdx.x - tiles, shared_memory<ColumnScratch<1>>(), parameters);
    return;
  }
  const Tile<V> tile(tiling);
  if (tile.count == 0) return;
  const Affine<V> z(in, tile.n, tile.channel, tiling.C);
  float p[V], q[V];
  in.template for_groups<V>(terms, tile.n, tile.channel, [&](int j, float first, float second) {
    p[j] = first;
    q[j] = second;
  });
  Pack<T, V> x = tile.load(in.x, 0), up = tile.load(dy, 0), old;
  for (int k = 0; k < tile.count; ++k) {
    const auto next_x = tile.load(in.x, k + 1), next_up = tile.load(dy, k + 1);
    T* const to = dx + tile.first + k * tile.step;
    if (accumulate) old = Pack<T, V>::load(to);
    float values[V];
    for (int j = 0; j < V; ++j) {
      const float dz = up[j] * Act::template derivative<T>(z(j, x[j]));
      values[j] = z.a[j] * dz - p[j] - (x[j] - z.mean[j]) * q[j];
    }
    if (accumulate)
      for (int j = 0; j < V; ++j) values[j] += old[j];
    Pack<T, V>::of(values).store(to);
    x = next_x;
    up = next_up;
  }
}

// ---- Launches

template <class T, int V>
void take_moments(Stream& stream, const GroupNormSpec& spec, const Tensor& x, Tensor& moments) {
  const Tiling tiling = tiling_of(stream, x, V, kMomentBlocks<T>, kTilePixels);
  if (tiling.empty()) return;
  Tensor partial = Tensor::empty(stream, {2, tiling.N, tiling.slices, tiling.C});
  launch_next<channel_moments_kernel<T, V>>(
      {cuda_stream(stream), tiling.grid(), dim3(kTileThreads), sizeof(ColumnScratch<V>)}, tiling,
      x.data<T>(), partial.data<float>());
  merge_parts(stream, Slices<T>{x.data<T>(), tiling.P, tiling.C, tiling.pixels, tiling.slices},
              spec, tiling.P, partial, moments);
}

template <class Act>
void norm_act_fwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x, const Tensor& gamma,
                  const Tensor& beta, const Tensor& t, const Tensor& residual, Tensor& y,
                  Tensor& moments, bool known) {
  const auto run = [&](auto zero, auto pack) {
    using T = decltype(zero);
    constexpr int V = decltype(pack)::value;
    if (!known) take_moments<T, V>(stream, spec, x, moments);
    const Tiling tiling = tiling_of(stream, x, V, kFwdBlocks, kTileLoop);
    if (tiling.empty()) return;
    launch_next<norm_act_fwd_kernel<T, V, Act>>(
        {cuda_stream(stream), tiling.grid(), dim3(kTileThreads)}, tiling,
        norm_args<T>(spec, x, moments, gamma, beta, t, residual), y.data<T>());
  };
  with_packs(x, run, gamma, beta, t, residual, y);
}

// Gradients of a sum over nothing.
void start_sums(Stream& stream, std::initializer_list<Grad> grads) {
  for (Grad grad : grads)
    if (grad && grad.mode == GradMode::Overwrite) grad.tensor.zero(stream);
}

// From partial sums [2,N,parts,C] to all gradients; dy is what Act's derivative is still to be
// multiplied with.
template <class Act, class T, int V>
void finish_bwd(Stream& stream, const Tiling& tiling, const NormArgs<T>& in, const T* dy,
                const Tensor& partial, Grad dx, Grad dgamma, Grad dbeta, Grad dt) {
  const auto [N, P, C] = std::tuple(tiling.N, tiling.P, tiling.C);
  const int64_t groups = N * in.groups;
  const int per_group = C / in.groups;
  const cudaStream_t on = cuda_stream(stream);
  Tensor sums = Tensor::empty(stream, {2, N, C}), terms = Tensor::empty(stream, {groups, 2});
  launch_next<group_sums_kernel<T>>(
      {on, dim3(unsigned(groups)), dim3(kTileThreads), sizeof(ColumnScratch<2>)},
      GroupSums<T>{N, P, partial.dim(2), C, per_group, std::min(per_group, kTileCols),
                   partial.data<float>(), in.gamma, in.moments, sums.data<float>(),
                   terms.data<float>(), data_or_null<T>(dt.tensor),
                   dt.mode == GradMode::Accumulate});
  const RowSums<float, 1> images(2, 2 * N, N, dgamma || dbeta ? C : 0, sums.data<float>());
  dim3 grid = dx ? tiling.grid() : dim3(0, 1);
  grid.x += images.blocks();
  if (grid.x == 0) return;
  Tiling tiles = tiling;
  if (!dx) tiles.N = 0;
  launch_next<norm_act_bwd_kernel<T, V, Act>>(
      {on, grid, dim3(kTileThreads), sizeof(ColumnScratch<1>)}, tiles, in, dy, terms.data<float>(),
      data_or_null<T>(dx.tensor), dx.mode == GradMode::Accumulate, images,
      PutParameters{data_or_null<float>(dbeta.tensor), data_or_null<float>(dgamma.tensor),
                    dbeta.mode == GradMode::Accumulate, dgamma.mode == GradMode::Accumulate});
}

template <class Act>
void norm_act_bwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x, const Tensor& moments,
                  const Tensor& gamma, const Tensor& beta, const Tensor& t, const Tensor& dy,
                  Grad dx, Grad dgamma, Grad dbeta, Grad dt) {
  if (x.numel() == 0) return start_sums(stream, {dx, dgamma, dbeta, dt});
  const auto run = [&](auto zero, auto pack) {
    using T = decltype(zero);
    constexpr int V = decltype(pack)::value;
    const Tiling tiling = tiling_of(stream, x, V, kBwdBlocks<T, Act>, kTileLoop);
    const auto in = norm_args<T>(spec, x, moments, gamma, beta, t, {});
    Tensor partial = Tensor::empty(stream, {2, tiling.N, tiling.slices, tiling.C});
    launch_next<norm_act_sums_kernel<T, V, Act>>(
        {cuda_stream(stream), tiling.grid(), dim3(kTileThreads), sizeof(ColumnScratch<V>)}, tiling,
        in, dy.data<T>(), partial.data<float>());
    finish_bwd<Act, T, V>(stream, tiling, in, dy.data<T>(), partial, dx, dgamma, dbeta, dt);
  };
  with_packs(x, run, gamma, beta, t, dy, dx.tensor);
}

}  // namespace

void merge_moments(Stream& stream, const TileParts& parts, const GroupNormSpec& spec,
                   const Tensor& partial, Tensor& moments) {
  merge_parts(stream, Tiles{parts, parts.count()}, spec, parts.image(), partial, moments);
}

void norm_act_bwd_from_sums(Stream& stream, const NormAct& spec, const Tensor& x,
                            const Tensor& moments, const Tensor& gamma, const Tensor& beta,
                            const Tensor& t, const Tensor& dy, const Tensor& partial, Grad dx,
                            Grad dgamma, Grad dbeta, Grad dt) {
  with_activation(spec.act, [&]<Activation a>() {
    const Tiling tiling = tiling_of(stream, x, 8, kBwdBlocks<bf16, Act<a>>, kTileLoop);
    finish_bwd<Act<a>, bf16, 8>(stream, tiling,
                                norm_args<bf16>(spec.norm, x, moments, gamma, beta, t, {}),
                                dy.data<bf16>(), partial, dx, dgamma, dbeta, dt);
  });
}

void group_norm_fwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x, const Tensor& gamma,
                    const Tensor& beta, Tensor& y, Tensor& moments, bool known) {
  norm_act_fwd<None>(stream, spec, x, gamma, beta, {}, {}, y, moments, known);
}

void group_norm_bwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x,
                    const Tensor& moments, const Tensor& gamma, const Tensor& dy, Grad dx,
                    Grad dgamma, Grad dbeta) {
  // beta shifts z only, and without an activation z does not matter.
  norm_act_bwd<None>(stream, spec, x, moments, gamma, {}, {}, dy, dx, dgamma, dbeta, {});
}

void group_norm_act_fwd(Stream& stream, const NormAct& spec, const Tensor& x, const Tensor& gamma,
                        const Tensor& beta, const Tensor& t, const Tensor& residual, Tensor& y,
                        Tensor& moments, bool known) {
  auto* run = with_activation(spec.act, [&]<Activation a>() { return &norm_act_fwd<Act<a>>; });
  run(stream, spec.norm, x, gamma, beta, t, residual, y, moments, known);
}

void group_norm_act_bwd(Stream& stream, const NormAct& spec, const Tensor& x, const Tensor& moments,
                        const Tensor& gamma, const Tensor& beta, const Tensor& t, const Tensor& dy,
                        Grad dx, Grad dgamma, Grad dbeta, Grad dt) {
  auto* run = with_activation(spec.act, [&]<Activation a>() { return &norm_act_bwd<Act<a>>; });
  run(stream, spec.norm, x, moments, gamma, beta, t, dy, dx, dgamma, dbeta, dt);
}

}  // namespace tessera::TESSERA_CUDA
