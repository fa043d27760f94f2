// The way back through GroupNorm, alone or fused (group_norm.cu). Where shared memory holds a group
// of an image, one launch does it (group_norm_image_bwd.h). Else a pass sums S1 = sum dz and
// S2 = sum dz xhat, dz = dy act'(z), per tile and channel; a small kernel adds up the tiles of an
// image (dt = S1) and the channels of a group; a pass computes dz again and dx = a dz - p -
// (x - mean) q, while blocks of their own add up the images (dbeta = sum S1, dgamma = sum S2).
// Convolutions may have taken the sums of the first pass (norm.h).
#include "kernels/composed.h"
#include "kernels/cuda/group_norm_image_bwd.h"

namespace tessera::TESSERA_CUDA {
namespace {

// Blocks that a multiprocessor holds at a time, by registers: the gradients of bf16 through an
// activation take 65 to 80 (a bound on these would cost spills), all others 64 at most.
template <class T, class Act>
constexpr int kBwdBlocks = sizeof(T) == 2 && !std::is_same_v<Act, None> ? 3 : 4;

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
  in.template for_groups<V>(in.moments_of(tile.n), tile.channel, [&](int j, float, float rstd) {
    to[j] = sum[j];
    to[j + tiling.N * tiling.slices * tiling.C] = product[j] * rstd;
  });
}

// From partial [2,N,parts,C]: sums [2,N,C], S1 and S2 of each image and channel; dt [N,C] = or +=
// S1 unless null; and p and q [N,G,2] of dx = a dz - p - (x - mean) q, which is dx = rstd (gamma dz
// - mean_group(gamma dz) - xhat mean_group(gamma dz xhat)). A block for each group of each image.
template <class T>
struct GroupSums {
  int64_t N, P, parts;
  int C, per_group, cols;  // cols: channels that a block adds up at a time
  Divisor32 by_groups, by_cols;
  const float *partial, *gamma, *moments;
  float *sums, *terms;
  T* dt;
  bool accumulate_dt;
};

template <class T>
__global__ void group_sums_kernel(GroupSums<T> a) {
  ptx::begin_kernel();
  auto& scratch = shared_memory<ColumnScratch<2>>();
  int image = int(blockIdx.x), row = int(threadIdx.x);
  const int first = a.by_groups.divide(image) * a.per_group, col = a.by_cols.divide(row);
  const int64_t n = image, second = a.N * a.parts * a.C;
  const int rows = a.by_cols.quotient(kTileThreads);
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
  const float* const of_image = terms + 2 * tile.n * in.groups;
  in.template for_groups<V>(of_image, tile.channel, [&](int j, float first, float second) {
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

// From partial sums [2,N,parts,C] to all gradients; dy is what Act's derivative is still to be
// multiplied with.
template <class Act, class T, int V>
void finish_bwd(Stream& stream, const Tiling& tiling, const NormArgs<T>& in, const T* dy,
                const Tensor& partial, Grad dx, Grad dgamma, Grad dbeta, Grad dt) {
  const auto [N, P, C] = std::tuple(tiling.N, tiling.P, tiling.C);
  const int64_t groups = N * in.groups;
  const int per_group = C / in.groups, cols = std::min(per_group, kTileCols);
  const cudaStream_t on = cuda_stream(stream);
  Tensor sums = Tensor::empty(stream, {2, N, C}), terms = Tensor::empty(stream, {groups, 2});
  launch_next<group_sums_kernel<T>>(
      {on, dim3(unsigned(groups)), dim3(kTileThreads), sizeof(ColumnScratch<2>)},
      GroupSums<T>{N, P, partial.dim(2), C, per_group, cols, Divisor32(int(in.groups)),
                   Divisor32(cols), partial.data<float>(), in.gamma, in.moments, sums.data<float>(),
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
      PutParameters(dbeta, dgamma));
}

// Whether h is made, too.
template <class Act>
bool norm_act_bwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x, const Tensor& moments,
                  const Tensor& gamma, const Tensor& beta, const Tensor& t, const Tensor& dy,
                  Grad dx, Grad dgamma, Grad dbeta, Grad dt, const Tensor& h) {
  if (x.numel() == 0) {
    for (const Grad& grad : {dx, dgamma, dbeta, dt}) start_sum(stream, grad);
    return true;
  }
  bool made = false;
  const auto run = [&](auto zero, auto pack) {
    using T = decltype(zero);
    constexpr int V = decltype(pack)::value;
    const auto in = norm_args<T>(spec, x, moments, gamma, beta, t, {});
    if constexpr (V == kPack<bf16>)
      if ((made = norm_image_bwd<Act>(stream, x, in, dy, dx, dgamma, dbeta, dt, h))) return;
    const Tiling tiling = tiling_of(stream, x, V, kBwdBlocks<T, Act>, kTileLoop);
    Tensor partial = Tensor::empty(stream, {2, tiling.N, tiling.slices, tiling.C});
    launch_next<norm_act_sums_kernel<T, V, Act>>(
        {cuda_stream(stream), tiling.grid(), dim3(kTileThreads), sizeof(ColumnScratch<V>)}, tiling,
        in, dy.data<T>(), partial.data<float>());
    finish_bwd<Act, T, V>(stream, tiling, in, dy.data<T>(), partial, dx, dgamma, dbeta, dt);
  };
  with_packs(x, run, gamma, beta, t, dy, dx.tensor, h);
  return made;
}

}  // namespace

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

void group_norm_bwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x,
                    const Tensor& moments, const Tensor& gamma, const Tensor& dy, Grad dx,
                    Grad dgamma, Grad dbeta) {
  // beta shifts z only, and without an activation z does not matter.
  norm_act_bwd<None>(stream, spec, x, moments, gamma, {}, {}, dy, dx, dgamma, dbeta, {}, {});
}

void group_norm_act_bwd(Stream& stream, const NormAct& spec, const Tensor& x, const Tensor& moments,
                        const Tensor& gamma, const Tensor& beta, const Tensor& t, const Tensor& dy,
                        Grad dx, Grad dgamma, Grad dbeta, Grad dt, const Tensor& h) {
  auto* run = with_activation(spec.act, [&]<Activation a>() { return &norm_act_bwd<Act<a>>; });
  if (!run(stream, spec.norm, x, moments, gamma, beta, t, dy, dx, dgamma, dbeta, dt, h) && h)
    composed::activated(stream, spec, x, moments, gamma, beta, t, h);
}

}  // namespace tessera::TESSERA_CUDA
