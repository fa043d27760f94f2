// GroupNorm, alone or fused with + t, an activation and + residual. x [N,P,C] with P = H*W, cut
// into tiles as columns.h says; bound by memory, the fused ones on their way there by the
// activation.
//
// Where shared memory holds a group of an image, one launch does it all (group_norm_image.h). Else
// a pass takes mean and M2 (sum of squared deviations) of every channel of every tile, in two steps
// over what it holds in registers, so that a large mean costs nothing; a small kernel merges tiles
// and channels into the moments of a group (Chan, Golub, LeVeque 1979); a pass applies y = act((x -
// mean) a + b) + residual with a = rstd gamma, b = beta + t. Convolutions may have taken the
// moments of tiles (norm.h). The way back: group_norm_bwd.cu.
#include "kernels/cuda/group_norm_image.h"

namespace tessera::TESSERA_CUDA {
namespace {

// Blocks that a multiprocessor holds at a time, by registers: the moments of bf16 take up to 80,
// all others 64 at most.
constexpr int kFwdBlocks = 4;
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
using MergeScratch = BlockScratch<float, kMergeThreads>;

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
__global__ void group_moments_kernel(Parts parts, int64_t N, int64_t P, int C, Divisor32 by_groups,
                                     Divisor32 by_group, float eps, const float* partial,
                                     float* moments) {
  ptx::begin_kernel();
  auto& scratch = shared_memory<MergeScratch>();
  const int per_group = by_group.divisor();
  int image = int(blockIdx.x);
  const int c = by_groups.divide(image) * per_group;
  const int64_t n = image;
  const float* means = partial + n * parts.parts * C + c;
  const float* m2s = means + N * parts.parts * C;
  const int entries = parts.parts * per_group;
  const float size = float(P * per_group), pivot = parts.base(n, c) + means[0];
  // f(its place, its mean less the pivot, its size) of every entry of a thread, a channel of a
  // part.
  const auto each = [&](const auto& f) {
    TESSERA_NO_UNROLL
    for (int i = int(threadIdx.x); i < entries; i += kMergeThreads) {
      int part = i;
      const int channel = by_group.divide(part);
      const int64_t place = int64_t(part) * C + channel;
      f(place, (parts.base(n, c + channel) - pivot) + means[place], float(parts.pixels(part)));
    }
  };
  float sum = 0, m2 = 0;
  each([&](int64_t, float mean, float pixels) { sum += pixels * mean; });
  const float offset = block_reduce(sum, Sum{}, scratch) / size;
  each([&](int64_t place, float mean, float pixels) {
    const float away = mean - offset;
    m2 += m2s[place] + pixels * (away * away);
  });
  m2 = block_reduce(m2, Sum{}, scratch);
  if (threadIdx.x != 0) return;
  moments[2 * blockIdx.x] = pivot + offset;
  moments[2 * blockIdx.x + 1] = 1.0f / sqrtf(m2 / size + eps);
}

template <class Parts>
void merge_parts(Stream& stream, const Parts& parts, const GroupNormSpec& spec, int64_t P,
                 const Tensor& partial, Tensor& moments) {
  const int64_t N = partial.dim(1), C = partial.dim(3), per_group = C / spec.groups;
  ENSURE(parts.parts * per_group <= INT32_MAX - kMergeThreads && N * spec.groups <= INT32_MAX,
         "group_norm: ", parts.parts, " parts of ", per_group, " channels");
  launch_next<group_moments_kernel<Parts>>({cuda_stream(stream), dim3(unsigned(N * spec.groups)),
                                            dim3(kMergeThreads), sizeof(MergeScratch)},
                                           parts, N, P, int(C), Divisor32(int(spec.groups)),
                                           Divisor32(int(per_group)), spec.eps,
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
    const auto in = norm_args<T>(spec, x, moments, gamma, beta, t, residual);
    if constexpr (V == kPack<bf16>)
      if (!known && norm_image_fwd<Act>(stream, spec, x, in, y, moments)) return;
    if (!known) take_moments<T, V>(stream, spec, x, moments);
    const Tiling tiling = tiling_of(stream, x, V, kFwdBlocks, kTileLoop);
    if (tiling.empty()) return;
    launch_next<norm_act_fwd_kernel<T, V, Act>>(
        {cuda_stream(stream), tiling.grid(), dim3(kTileThreads)}, tiling, in, y.data<T>());
  };
  with_packs(x, run, gamma, beta, t, residual, y);
}

}  // namespace

void merge_moments(Stream& stream, const TileParts& parts, const GroupNormSpec& spec,
                   const Tensor& partial, Tensor& moments) {
  merge_parts(stream, Tiles{parts, parts.count()}, spec, parts.image(), partial, moments);
}

void group_norm_fwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x, const Tensor& gamma,
                    const Tensor& beta, Tensor& y, Tensor& moments, bool known) {
  norm_act_fwd<None>(stream, spec, x, gamma, beta, {}, {}, y, moments, known);
}

void group_norm_act_fwd(Stream& stream, const NormAct& spec, const Tensor& x, const Tensor& gamma,
                        const Tensor& beta, const Tensor& t, const Tensor& residual, Tensor& y,
                        Tensor& moments, bool known) {
  auto* run = with_activation(spec.act, [&]<Activation a>() { return &norm_act_fwd<Act<a>>; });
  run(stream, spec.norm, x, gamma, beta, t, residual, y, moments, known);
}

}  // namespace tessera::TESSERA_CUDA
