// GroupNorm of groups that blocks have in shared memory: tensors are read once, forward and on the
// way back, and one launch does what takes three by tiles (columns.h). bf16 in packs, sm_90 and up,
// as long as a group of an image fits (image_cut.h).
//
//     global memory   x, dy ---->                             ----> dx, h
//     a block                     sums of its pixels   apply
//
// A block has all pixels of a group, or of several neighbouring ones. A thread copies what it will
// work on itself, so that it waits for its own copies only, and works on the first of them while
// the rest is on its way. Where the pixels are too many, or the blocks too few, the parts of an
// image are a cluster: their sums go through memory, and behind the cluster's barrier each block
// adds up those of its groups, all in the same order. The formulas are those of group_norm.cu and
// group_norm_bwd.cu.
#pragma once

#include "kernels/cuda/columns.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/ptx/cluster.h"
#include "kernels/cuda/ptx/cp_async.h"
#include "kernels/cuda/reduce.h"
#include "kernels/image_cut.h"

namespace tessera::TESSERA_CUDA {

using ImagePack = Pack<bf16, 8>;
using FloatPack = Pack<float, 4>;
__device__ __forceinline__ void store_floats(float* to, const float* from) {
  FloatPack::of({from[0], from[1], from[2], from[3]}).store(to);
}

// Images that are cut: tiling.slices parts, and blockIdx.y says which of the channels.
struct ImageSplit {
  Tiling tiling;
  Divisor32 by_group;  // channels of a group
  int groups, slots, floats;

  ImageSplit(const ImageCut& cut, const Shape& x, int64_t groups)
      : tiling{x[0],
               x[1] * x[2],
               int(x[3]),
               int(x[3] / 8),
               cut.cols,
               cut.rows,
               cut.pixels,
               cut.parts,
               Divisor32(cut.cols),
               Divisor32(cut.rows),
               Divisor32(cut.parts)},
        by_group(int(x[3] / groups)),
        groups(int(groups)),
        slots(cut.slots),
        floats(ImageCut::floats(x[3], groups)) {}

  // The channels and groups of a block: from its first ones up to those of the next block.
  __device__ __forceinline__ int channels(int block) const {
    return min(block * tiling.cols * 8, tiling.C);
  }
  __device__ __forceinline__ int first_group(int block) const {
    return by_group.quotient(channels(block));
  }
};

// Shared memory of a block (ImageCut): scratch, then two numbers for each channel and for each
// group, then `slots` packs of each thread for each tensor.
template <int kThreads>
struct ImageShared {
  ColumnScratch<8, kThreads> scratch;

  __device__ __forceinline__ float* channels() { return reinterpret_cast<float*>(this + 1); }
  __device__ __forceinline__ float* pairs(const ImageSplit& s) {
    return channels() + 2 * s.tiling.C;
  }
  // Pack k of the thread in a tensor.
  __device__ __forceinline__ bf16* pack(const ImageSplit& s, int tensor, int k) {
    bf16* const first = reinterpret_cast<bf16*>(channels() + s.floats);
    return first + ((tensor * s.slots + k) * kThreads + int(threadIdx.x)) * 8;
  }
  // Half of pack k of dz, where dy and one more were.
  __device__ __forceinline__ float* dz(const ImageSplit& s, int half, int k) {
    return reinterpret_cast<float*>(pack(s, 1 + half, k));
  }
};

// Copies arrive in so many groups.
inline constexpr int kImageGroups = 4;
__device__ __forceinline__ void wait_for_image(int group) {
  switch (group) {
    case 0:
      return ptx::cp_async_wait<3>();
    case 1:
      return ptx::cp_async_wait<2>();
    case 2:
      return ptx::cp_async_wait<1>();
    default:
      return ptx::cp_async_wait<0>();
  }
}
// f(k) for the pixels of a thread that are in group g.
template <class F>
__device__ __forceinline__ void for_group(int count, int g, const F& f) {
  const int step = (count + kImageGroups - 1) / kImageGroups;
  TESSERA_NO_UNROLL
  for (int k = g * step; k < min(count, (g + 1) * step); ++k) f(k);
}
// And for all of them, as they arrive.
template <class F>
__device__ __forceinline__ void for_image(int count, const F& f) {
  TESSERA_NO_UNROLL
  for (int g = 0; g < kImageGroups; ++g) {
    wait_for_image(g);
    for_group(count, g, f);
  }
}
// Begins all of a thread's copies, of one tensor or two.
template <int kThreads>
__device__ __forceinline__ void fetch_image(const ImageSplit& s, const Tile<8>& tile,
                                            ImageShared<kThreads>& shared, const bf16* first,
                                            const bf16* second = nullptr) {
  TESSERA_NO_UNROLL
  for (int g = 0; g < kImageGroups; ++g) {
    for_group(tile.count, g, [&](int k) {
      const int64_t from = tile.first + k * tile.step;
      ptx::cp_async16(shared.pack(s, 0, k), first + from);
      if (second) ptx::cp_async16(shared.pack(s, 1, k), second + from);
    });
    ptx::cp_async_commit();
  }
}

// Two numbers of each channel of each part of an image, `second` apart: in partial [2,N,parts,C],
// or of a single part in shared memory [2,C].
struct PartSums {
  float* first;
  int64_t second;

  template <int kThreads>
  __device__ __forceinline__ PartSums(const Tiling& t, const Tile<8>& tile, float* partial,
                                      ImageShared<kThreads>& shared)
      : first(t.slices == 1 ? shared.channels() : partial + tile.n * t.slices * t.C),
        second(t.slices == 1 ? t.C : t.N * t.slices * t.C) {}

  // Puts a block's own there and waits until those of all parts are there.
  __device__ __forceinline__ void put(const Tiling& t, const Tile<8>& tile, const float (&a)[8],
                                      const float (&b)[8]) const {
    if (tile.row == 0 && tile.has_channel) {
      float* const to = first + tile.slice * t.C + tile.channel;
      for (int j = 0; j < 8; j += 4) {
        store_floats(to + j, a + j);
        store_floats(to + j + second, b + j);
      }
    }
    if (t.slices == 1)
      __syncthreads();
    else
      ptx::cluster_sync();
  }
};

// pairs [G,2], mean and rstd of a block's groups, from means and M2s. A warp for each group.
template <int kThreads>
__device__ __forceinline__ void merge_image(const ImageSplit& s, float eps, const PartSums& sums,
                                            float* pairs) {
  const Tiling& t = s.tiling;
  const int per_group = s.by_group.divisor(), entries = t.slices * per_group;
  const float size = float(t.P * per_group);
  const int end = s.first_group(int(blockIdx.y) + 1);
  for (int g = s.first_group(int(blockIdx.y)) + int(threadIdx.x) / 32; g < end;
       g += kThreads / 32) {
    const float *means = sums.first + g * per_group, *m2s = means + sums.second;
    const float pivot = means[0];
    const auto sum_of = [&](const auto& f) {
      float sum = 0;
      for (int i = int(threadIdx.x) % 32; i < entries; i += 32) {
        int part = i;
        const int channel = s.by_group.divide(part);
        const int64_t left = t.P - int64_t(part) * t.pixels;
        sum += f(int64_t(part) * t.C + channel, float(min(int64_t(t.pixels), left)));
      }
      return warp_reduce(sum, Sum{});
    };
    const float offset =
        sum_of([&](int64_t i, float pixels) { return pixels * (means[i] - pivot); }) / size;
    const float m2 = sum_of([&](int64_t i, float pixels) {
      const float away = (means[i] - pivot) - offset;
      return m2s[i] + pixels * (away * away);
    });
    if (threadIdx.x % 32 != 0) continue;
    pairs[2 * g] = pivot + offset;
    pairs[2 * g + 1] = 1.0f / sqrtf(m2 / size + eps);
  }
}

// partial [2,N,parts,C] is scratch, where there are several parts. By registers, too, a
// multiprocessor has room for three blocks of 256 threads.
template <class Act, int kThreads>
__global__ void __launch_bounds__(kThreads, 768 / kThreads)
    norm_image_fwd_kernel(ImageSplit s, NormArgs<bf16> in, float eps, float* partial,
                          float* moments, bf16* y) {
  ptx::begin_kernel();
  auto& shared = shared_memory<ImageShared<kThreads>>();
  const Tiling& t = s.tiling;
  const Tile<8> tile(t);
  fetch_image(s, tile, shared, in.x);
  const auto x_of = [&](int k) { return ImagePack::load(shared.pack(s, 0, k)); };
  // Deviations from a pixel are small beside a mean that is large, and lose nothing to rounding.
  float pivot[8] = {}, mean[8] = {}, m2[8] = {};
  if (tile.has_channel) {
    const auto pixel = ImagePack::load(in.x + tile.n * t.P * t.C + tile.channel);
    for (int j = 0; j < 8; ++j) pivot[j] = pixel[j];
  }
  for_image(tile.count, [&](int k) {
    const auto x = x_of(k);
    for (int j = 0; j < 8; ++j) mean[j] += x[j] - pivot[j];
  });
  column_sums(mean, t.cols, t.rows, shared.scratch);
  for (int j = 0; j < 8; ++j) mean[j] /= float(tile.length);
  for (int k = 0; k < tile.count; ++k) {
    const auto x = x_of(k);
    for (int j = 0; j < 8; ++j) {
      const float deviation = (x[j] - pivot[j]) - mean[j];
      m2[j] += deviation * deviation;
    }
  }
  column_sums(m2, t.cols, t.rows, shared.scratch);
  for (int j = 0; j < 8; ++j) mean[j] += pivot[j];
  // On their way across the barrier; the residual then a pixel ahead.
  Affine<8> z;
  ImagePack residual;
  if (tile.count > 0) z.load(in, tile.n, tile.channel, t.C);
  if (in.residual) residual = tile.load(in.residual, 0);
  const PartSums parts(t, tile, partial, shared);
  parts.put(t, tile, mean, m2);
  float* const pairs = shared.pairs(s);
  merge_image<kThreads>(s, eps, parts, pairs);
  __syncthreads();
  if (tile.slice == 0) {
    const int end = 2 * s.first_group(int(blockIdx.y) + 1);
    for (int i = 2 * s.first_group(int(blockIdx.y)) + int(threadIdx.x); i < end; i += kThreads)
      moments[2 * tile.n * s.groups + i] = pairs[i];
  }
  if (tile.count == 0) return;
  z.set(in, pairs, tile.channel);
  for (int k = 0; k < tile.count; ++k) {
    const auto x = x_of(k);
    float values[8];
    for (int j = 0; j < 8; ++j) values[j] = Act::template value<bf16>(z(j, x[j]));
    if (in.residual) {
      for (int j = 0; j < 8; ++j) values[j] += residual[j];
      residual = tile.load(in.residual, k + 1);
    }
    ImagePack::of(values).store(y + tile.first + k * tile.step);
  }
}

// ---- Launches

// launch(threads as a constant, the launch itself)
template <class F>
void launch_image(Stream& stream, const ImageCut& cut, const Shape& x, const F& launch) {
  const int64_t units = cut.units(x[3]);
  ENSURE(x[0] * cut.parts <= INT32_MAX && units <= 65535, "group_norm of ", x);
  const Launch how{cuda_stream(stream), dim3(unsigned(x[0] * cut.parts), unsigned(units)),
                   dim3(unsigned(cut.threads)), cut.shared_bytes,
                   cut.parts > 1 ? unsigned(cut.parts) : 0};
  constexpr int kMost = ImageCut::kMostThreads;
  cut.threads < kMost ? launch(std::integral_constant<int, kMost / 2>{}, how)
                      : launch(std::integral_constant<int, kMost>{}, how);
}

// All of group_norm_act_fwd, or false: this image does not fit.
template <class Act>
bool norm_image_fwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x,
                    const NormArgs<bf16>& in, Tensor& y, Tensor& moments) {
  const auto cut = ImageCut::of(stream.device().info(), x.shape(), x.dtype(), spec.groups, 1);
  if (!cut) return false;
  Tensor partial;
  if (cut->parts > 1) partial = Tensor::empty(stream, {2, x.dim(0), cut->parts, x.dim(3)});
  launch_image(stream, *cut, x.shape(), [&](auto threads, const Launch& how) {
    launch_next<norm_image_fwd_kernel<Act, decltype(threads)::value>>(
        how, ImageSplit(*cut, x.shape(), spec.groups), in, spec.eps, data_or_null<float>(partial),
        moments.data<float>(), y.data<bf16>());
  });
  return true;
}

}  // namespace tessera::TESSERA_CUDA
