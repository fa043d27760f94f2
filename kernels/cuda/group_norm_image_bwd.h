// The way back through GroupNorm by images (group_norm_image.h).
#pragma once

#include "kernels/cuda/group_norm_image.h"
#include "kernels/cuda/last_block.h"

namespace tessera::TESSERA_CUDA {

struct ImageGrads {
  const bf16* dy;
  bf16 *dx, *h, *dt;  // or null
  bool accumulate_dx, accumulate_dt;
  PutParameters parameters;
  float *partial, *sums;  // PartSums, and [2,N,C]: S1 and S2 of images
  unsigned* arrivals;     // one for each of gridDim.y, or null: no parameters
};

// S1 and S2 of a block's channels from the parts', whose second sums are still to be multiplied
// with rstd; pairs [G,2] become p and q of dx = a dz - p - (x - mean) q (GroupSums).
template <int kThreads>
__device__ __forceinline__ void sum_image(const ImageSplit& s, const NormArgs<bf16>& in,
                                          const Tile<8>& tile, const ImageGrads& out,
                                          const PartSums& parts, ImageShared<kThreads>& shared) {
  const Tiling& t = s.tiling;
  float *const channels = shared.channels(), *const pairs = shared.pairs(s);
  const int channels_end = s.channels(int(blockIdx.y) + 1);
  TESSERA_NO_UNROLL
  for (int c = s.channels(int(blockIdx.y)) + int(threadIdx.x); c < channels_end; c += kThreads) {
    const float* from = parts.first + c;
    float sum[2] = {};
    TESSERA_UNROLL
    for (int part = 0; part < ImageCut::kMostParts; ++part)
      if (part < t.slices) {
        sum[0] += from[part * t.C];
        sum[1] += from[part * t.C + parts.second];
      }
    sum[1] *= in.moments_of(tile.n)[2 * s.by_group.quotient(c) + 1];
    for (int i = 0; i < 2; ++i) channels[i * t.C + c] = in.gamma[c] * sum[i];
    if (tile.slice != 0) continue;
    for (int i = 0; i < 2; ++i) out.sums[(i * t.N + tile.n) * t.C + c] = sum[i];
    if (out.dt) put_at(out.dt + tile.n * t.C + c, sum[0], out.accumulate_dt);
  }
  __syncthreads();
  const int per_group = s.by_group.divisor(), end = s.first_group(int(blockIdx.y) + 1);
  for (int g = s.first_group(int(blockIdx.y)) + int(threadIdx.x) / 32; g < end;
       g += kThreads / 32) {
    float m1 = 0, m2 = 0;
    for (int i = int(threadIdx.x) % 32; i < per_group; i += 32) {
      m1 += channels[g * per_group + i];
      m2 += channels[t.C + g * per_group + i];
    }
    m1 = warp_reduce(m1, Sum{});
    m2 = warp_reduce(m2, Sum{});
    if (threadIdx.x % 32 != 0) continue;
    const float size = float(t.P * per_group), rstd = in.moments_of(tile.n)[2 * g + 1];
    pairs[2 * g] = rstd * m1 / size;
    pairs[2 * g + 1] = rstd * rstd * m2 / size;
  }
  __syncthreads();
}

// dbeta and dgamma of a block's channels, by the block whose image is the last of them to have its
// sums.
template <int kThreads>
__device__ __forceinline__ void sum_over_images(const Tiling& t, const Tile<8>& tile,
                                                const ImageGrads& out,
                                                ColumnScratch<8, kThreads>& scratch) {
  for (int o = 0; o < 2; ++o) {
    float sum[8] = {};
    if (tile.has_channel && tile.row < t.rows)
      for (int64_t n = tile.row; n < t.N; n += t.rows) {
        const float* const from = out.sums + (o * t.N + n) * t.C + tile.channel;
        for (int i = 0; i < 2; ++i) {
          const auto half = FloatPack::load(from + 4 * i);
          for (int j = 0; j < 4; ++j) sum[4 * i + j] += half[j];
        }
      }
    column_sums(sum, t.cols, t.rows, scratch);
    if (tile.row == 0 && tile.has_channel)
      for (int j = 0; j < 8; ++j) out.parameters(o, tile.channel + j, sum[j]);
  }
}

// How many packs of a pixel are kept: x, and dy or, where an activation's derivative goes in
// between, in place of dy and of a third one, dz in float.
template <class Act>
constexpr int kKeptOnWayBack = std::is_same_v<Act, None> ? 2 : ImageCut::kMostTensors;

// dx from what shared memory holds.
template <class Act, int kThreads>
__device__ __forceinline__ void put_dx(const ImageSplit& s, const NormArgs<bf16>& in,
                                       const Tile<8>& tile, const Affine<8>& z,
                                       const ImageGrads& out, ImageShared<kThreads>& shared) {
  if (tile.count == 0) return;
  float p[8], q[8];
  in.template for_groups<8>(shared.pairs(s), tile.channel, [&](int j, float first, float second) {
    p[j] = first;
    q[j] = second;
  });
  for (int k = 0; k < tile.count; ++k) {
    const auto x = ImagePack::load(shared.pack(s, 0, k));
    float dz[8];
    if constexpr (!std::is_same_v<Act, None>) {
      for (int i = 0; i < 2; ++i) {
        const auto half = FloatPack::load(shared.dz(s, i, k));
        for (int j = 0; j < 4; ++j) dz[4 * i + j] = half[j];
      }
    } else {
      const auto dy = ImagePack::load(shared.pack(s, 1, k));
      for (int j = 0; j < 8; ++j) dz[j] = dy[j];
    }
    bf16* const to = out.dx + tile.first + k * tile.step;
    float values[8];
    for (int j = 0; j < 8; ++j) values[j] = z.a[j] * dz[j] - p[j] - (x[j] - z.mean[j]) * q[j];
    if (out.accumulate_dx) {
      const auto old = ImagePack::load(to);
      for (int j = 0; j < 8; ++j) values[j] += old[j];
    }
    ImagePack::of(values).store(to);
  }
}

// dx may be dy, and h = act(norm(x) + t) may be x.
template <class Act, int kThreads>
__global__ void __launch_bounds__(kThreads)
    norm_image_bwd_kernel(ImageSplit s, NormArgs<bf16> in, ImageGrads out) {
  ptx::begin_kernel();
  auto& shared = shared_memory<ImageShared<kThreads>>();
  const Tiling& t = s.tiling;
  const Tile<8> tile(t);
  fetch_image(s, tile, shared, in.x, out.dy);
  float sum[8] = {}, product[8] = {};
  Affine<8> z{};
  if (tile.count > 0) {
    z = Affine<8>(in, tile.n, tile.channel, t.C);
    for_image(tile.count, [&](int k) {
      const auto x = ImagePack::load(shared.pack(s, 0, k)),
                 dy = ImagePack::load(shared.pack(s, 1, k));
      float dz[8], values[8];
      for (int j = 0; j < 8; ++j) {
        dz[j] = dy[j] * Act::template derivative<bf16>(z(j, x[j]));
        sum[j] += dz[j];
        product[j] += dz[j] * (x[j] - z.mean[j]);
      }
      if constexpr (!std::is_same_v<Act, None>)
        for (int i = 0; i < 2; ++i) store_floats(shared.dz(s, i, k), dz + 4 * i);
      if (!out.h) return;
      for (int j = 0; j < 8; ++j) values[j] = Act::template value<bf16>(z(j, x[j]));
      ImagePack::of(values).store(out.h + tile.first + k * tile.step);
    });
  }
  column_sums(sum, t.cols, t.rows, shared.scratch);
  column_sums(product, t.cols, t.rows, shared.scratch);
  const PartSums parts(t, tile, out.partial, shared);
  parts.put(t, tile, sum, product);
  sum_image(s, in, tile, out, parts, shared);
  // The first part has put the sums of its image where all images are added.
  const bool sums_images = tile.slice == 0 && out.arrivals;
  Arrival arrival;
  if (sums_images) arrival = Arrival(out.arrivals + blockIdx.y, unsigned(t.N));
  if (out.dx) put_dx<Act>(s, in, tile, z, out, shared);
  if (sums_images && arrival.is_last()) sum_over_images(t, tile, out, shared.scratch);
}

// All of group_norm_act_bwd, or false. h may be undefined.
template <class Act>
bool norm_image_bwd(Stream& stream, const Tensor& x, const NormArgs<bf16>& in, const Tensor& dy,
                    Grad dx, Grad dgamma, Grad dbeta, Grad dt, Tensor h) {
  const auto cut =
      ImageCut::of(stream.device().info(), x.shape(), x.dtype(), in.groups, kKeptOnWayBack<Act>);
  const int64_t N = x.dim(0), C = x.dim(3);
  if (!cut || cut->units(C) > Arrivals::kMost) return false;
  Tensor partial;
  if (cut->parts > 1) partial = Tensor::empty(stream, {2, N, cut->parts, C});
  Tensor sums = Tensor::empty(stream, {2, N, C});
  unsigned* const arrivals = dgamma || dbeta ? Arrivals::of(stream, cut->units(C)) : nullptr;
  launch_image(stream, *cut, x.shape(), [&](auto threads, const Launch& how) {
    launch_next<norm_image_bwd_kernel<Act, decltype(threads)::value>>(
        how, ImageSplit(*cut, x.shape(), in.groups), in,
        ImageGrads{dy.data<bf16>(), data_or_null<bf16>(dx.tensor), data_or_null<bf16>(h),
                   data_or_null<bf16>(dt.tensor), dx.mode == GradMode::Accumulate,
                   dt.mode == GradMode::Accumulate, PutParameters(dbeta, dgamma),
                   data_or_null<float>(partial), sums.data<float>(), arrivals});
  });
  return true;
}

}  // namespace tessera::TESSERA_CUDA
