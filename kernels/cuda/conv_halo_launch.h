// Where halo tiles serve a convolution, which tile, and where its results go.
#pragma once

#include <algorithm>

#include "kernels/conv_tiles.h"
#include "kernels/cuda/conv_halo_wgrad.h"
#include "kernels/cuda/conv_phase.h"
#include "kernels/cuda/sum_parts.h"

namespace tessera::TESSERA_CUDA::conv {

// Whether there are kernels for this convolution of bf16 here, when all channels are in packs.
inline bool has_halo_kernels(Stream& stream, const Sizes& s) {
  // From a tile's corner ImageCorner counts packs in 32 bits: of two images, if there are, and of
  // the border.
  const int64_t pixels = std::min<int64_t>(s.x_pixels, 2 * int64_t{s.H} * s.W) + 2 * int64_t{s.W};
  const int packs = std::max({s.C, s.K, 8}) / 8;  // of a pixel of x or dy
  return has_mma(stream.device().info()) && s.R == 3 && s.S == 3 && s.stride == 1 && s.pad_h == 1 &&
         s.pad_w == 1 && pixels <= INT32_MAX / packs;
}

// Images that a tile of 8 x 8 would be mostly zeros for: forward and the data's gradient are left
// to the implicit product.
inline bool is_tiny(int H, int W) { return H < 5 || W < 5; }

// ---- Outputs: before<n>(...) is what is added to a pixel's sums in n pairs of neighbouring
// channels, 8 apart, store() takes a block's results from shared memory to where they belong.
// kBlocks: see BlocksWanted.

__device__ __forceinline__ bool is_inside(const HaloSizes& s, const Place& at) {
  return at.n < s.N && at.h < s.H && at.w < s.W;
}
__device__ __forceinline__ int64_t pixel_number(const Place& at, int H, int W) {
  return int64_t(at.n * H + at.h) * W + at.w;
}
// Nothing, a bias, or what is there.
struct NoPairs {
  __device__ __forceinline__ float at(int, int) const { return 0; }
};
template <int n>
struct Pairs {
  float values[n][2] = {};
  __device__ __forceinline__ float at(int j, int i) const { return values[j][i]; }
};

// The part of a thread: a pack of 8 channels of every kRows-th pixel of the tile.
template <class Tile>
struct PackOfTile {
  static constexpr int kPacks = Tile::BN / 8, kRows = Tile::kThreads / kPacks;
  static_assert(kPacks <= 32 && 32 % kPacks == 0);
  int x = int(threadIdx.x) % kPacks * 8, row = int(threadIdx.x) / kPacks;

  // f(m, how many pixels of the image behind the thread's first one) for every pixel of the thread
  // that is in the tile's image n.
  template <class F>
  __device__ __forceinline__ void for_pixels(const HaloSizes& sizes, const Place& first, int n,
                                             const F& f) const {
    constexpr int kImage = Tile::TH * Tile::TW;
    static_assert(kRows % Tile::TW == 0 && kImage % kRows == 0);
    if (first.n + n >= sizes.N || first.w + row % Tile::TW * Tile::kApart >= sizes.W) return;
    TESSERA_UNROLL
    for (int i = 0; i < kImage; i += kRows) {
      if (first.h + (row + i) / Tile::TW * Tile::kApart < sizes.H)
        f(n * kImage + row + i, i / Tile::TW * Tile::kApart * sizes.W);
    }
  }
  // The number of the thread's first pixel in the tile's image n.
  __device__ __forceinline__ int64_t first_pixel(const HaloSizes& sizes, const Place& first,
                                                 int n) const {
    return pixel_number({first.n + n, first.h + row / Tile::TW * Tile::kApart,
                         first.w + row % Tile::TW * Tile::kApart},
                        sizes.H, sizes.W);
  }
  // Every thread gets the sums of its channels over all threads. All must come, and twice with
  // other scratch before they come with the same again.
  __device__ __forceinline__ void add_up(float (&values)[8], float (*scratch)[Tile::BN]) const {
    const int warp = int(threadIdx.x) / 32;
    for (int j = 0; j < 8; ++j)
      for (int lanes = kPacks; lanes < 32; lanes *= 2)
        values[j] += __shfl_xor_sync(0xFFFFFFFF, values[j], lanes);
    if (threadIdx.x % 32 < kPacks)
      for (int j = 0; j < 8; ++j) scratch[warp][x + j] = values[j];
    __syncthreads();
    for (int j = 0; j < 8; ++j) {
      values[j] = scratch[0][x + j];
      for (int w = 1; w < Tile::kThreads / 32; ++w) values[j] += scratch[w][x + j];
    }
  }
};

// y [N,H,W,K] = sums + bias, or += sums, rounded once.
struct HaloImage {
  static constexpr int kBlocks = 0;
  bf16* y;
  const float* bias;  // or null
  int K;
  bool accumulate;

  template <int n>
  __device__ __forceinline__ Pairs<n> before(const HaloSizes& sizes, const Place& at, int k) const {
    Pairs<n> result;
    const bool adds = !bias && accumulate && is_inside(sizes, at);
    const bf16* const from = adds ? y + pixel_number(at, sizes.H, sizes.W) * K + k : y;
    TESSERA_UNROLL
    for (int j = 0; j < n; ++j) {
      if (k + 8 * j >= K) continue;
      if (bias) {
        const auto two = Pack<float, 2>::load(bias + k + 8 * j);
        result.values[j][0] = two[0], result.values[j][1] = two[1];
      } else if (adds) {
        const auto two = Pack<bf16, 2>::load(from + 8 * j);
        result.values[j][0] = two[0], result.values[j][1] = two[1];
      }
    }
    return result;
  }
  template <class Tile>
  __device__ __forceinline__ void store(const HaloSizes& sizes, const Place& first, int column,
                                        const HaloResults<Tile>& results) const {
    const PackOfTile<Tile> mine;
    if (column + mine.x >= K) return;
    for (int n = 0; n < Tile::TN; ++n) {
      bf16* const to = y + mine.first_pixel(sizes, first, n) * K + column + mine.x;
      mine.for_pixels(sizes, first, n, [&](int m, int further) {
        Pack<bf16, 8>::load(&results.out[m][mine.x]).store(to + int64_t(further) * K);
      });
    }
  }
};

// ---- Tiles: by kernels/conv_tiles.h, which chooses one.
template <class Tile>
int64_t pixel_tiles(int N, int H, int W) {
  constexpr int kApart = Tile::kApart;
  return ceil_div(N, Tile::TN) * ceil_div(H, Tile::TH * kApart) * ceil_div(W, Tile::TW * kApart) *
         (kApart * kApart);
}
// Calls f(HaloTile), of pixels `apart`.
template <int apart = 1, class F>
void with_halo_tile(ConvTile tile, const F& f) {
  const auto call = [&]<ConvTile T, int WM, int WN>() {
    constexpr ConvTileSize size = kConvTiles[int(T)];
    f(HaloTile<size.height, size.width, size.channels, WM, WN, apart, size.images>{});
  };
  switch (tile) {
    case ConvTile::k16x16x64:
      return call.template operator()<ConvTile::k16x16x64, 64, 32>();
    case ConvTile::k8x16x128:
      return call.template operator()<ConvTile::k8x16x128, 64, 32>();
    case ConvTile::k2x8x8x128:
      return call.template operator()<ConvTile::k2x8x8x128, 64, 32>();
    case ConvTile::k2x8x8x64:
      return call.template operator()<ConvTile::k2x8x8x64, 32, 32>();
    case ConvTile::k8x8x64:
      return call.template operator()<ConvTile::k8x8x64, 32, 32>();
  }
}
inline ConvTile tile_for(Stream& stream, bool data_gradient, int N, const HaloSource& source) {
  const auto& [image, filters] = source;
  return stream.state<ConvTiles>().choose(
      stream.device().info().capability,
      {data_gradient, N, image.H, image.W, filters.columns, filters.depth});
}

// Whether a block finds its shared memory on every card from 8.0 on: 8.6 and 8.9 have 99 KB. On
// 9.0 kBlocks do.
template <class Tile, class Source>
inline constexpr bool kFitsAllCards =
    sizeof(HaloShared<Tile, Source, false, Tile::kBlocks>) <= 99 * 1024 &&
    sizeof(HaloShared<Tile, Source, true, Tile::kBlocks>) <= gemm::shared_of(Tile::kBlocks);

// Where a grid has half of the blocks that a 9.0 holds at a time, or less, each can have twice the
// shared memory, and needs more stages: fewer others compute while it waits. Whether there is such
// a kernel: with 4 stages and more beside the others there are enough.
template <class Tile, class Source>
inline constexpr bool kHasFew = HaloShared<Tile, Source, true, Tile::kBlocks>::kStages < 4;
// For how many blocks on a multiprocessor a grid's rings are sized.
template <class Tile, class Source>
int halo_blocks(const DeviceInfo& info, int64_t blocks) {
  const bool few = has_wgmma(info) && blocks <= Tile::kBlocks / 2 * info.multiprocessors;
  return kHasFew<Tile, Source> && few ? Tile::kBlocks / 2 : Tile::kBlocks;
}
template <class Tile, class Source>
size_t halo_shared(const DeviceInfo& info, int64_t blocks) {
  if (!has_wgmma(info)) return sizeof(HaloShared<Tile, Source, false, Tile::kBlocks>);
  return halo_blocks<Tile, Source>(info, blocks) == Tile::kBlocks
             ? sizeof(HaloShared<Tile, Source, true, Tile::kBlocks>)
             : sizeof(HaloShared<Tile, Source, true, Tile::kBlocks / 2>);
}

template <class Tile, class Source, class Output>
void launch_halo(Stream& stream, int N, int H, int W, int columns, const Source& source,
                 const Output& output) {
  static_assert(kFitsAllCards<Tile, Source>);
  const int64_t blocks = pixel_tiles<Tile>(N, H, W) * ceil_div(columns, Tile::BN);
  ENSURE(blocks <= INT32_MAX, "conv2d: ", blocks, " blocks");
  const DeviceInfo& info = stream.device().info();
  const auto launch = [&]<int at_once>() {
    launch_next<conv_halo_kernel<Tile, Source, Output, at_once>>(
        {cuda_stream(stream), dim3(unsigned(blocks)), dim3(Tile::kThreads),
         halo_shared<Tile, Source>(info, blocks)},
        source, HaloSizes(Tile{}, N, H, W, columns), output);
  };
  if constexpr (kHasFew<Tile, Source>)
    if (halo_blocks<Tile, Source>(info, blocks) < Tile::kBlocks)
      return launch.template operator()<Tile::kBlocks / 2>();
  launch.template operator()<Tile::kBlocks>();
}

// dx += or = the sums of dy's windows by filters that are turned around. By kernels of the forward
// pass, those without moments: in conv2d_fwd.cu.
void run_halo_grad(Stream& stream, int N, const HaloSource& source, const HaloImage& dx);

// What was given of a form of a filter, if it lies at an address of packs, else what `make` makes.
template <class Make>
Tensor form_of(const Tensor& given, const Make& make) {
  return given && packs_fit<bf16, 8>(0, given.data<bf16>()) ? given : make();
}
// The last `channels` channels of w, turned around.
inline Tensor turned_of(Stream& stream, const Tensor& w, const Tensor& given, int64_t channels) {
  return form_of(given, [&] {
    const Tensor turned =
        Tensor::empty(stream, {channels, w.dim(1), w.dim(2), w.dim(0)}, w.dtype());
    const TurnedFilter one[] = {{w, turned}};
    turn_filters(stream, one);
    return turned;
  });
}

// ---- Filters' gradients

// Whether these kernels compute the gradient, if packs of the input fit.
inline bool halo_wgrad_fits(Stream& stream, const Sizes& s, const Tensor& dy, const Grad& dw) {
  return dy.dtype() == DType::bf16 && has_halo_kernels(stream, s) && dy.numel() > 0 &&
         packs_fit<bf16, 8>(s.K, dy.data<bf16>()) &&
         packs_fit<float, 2>(0, dw.tensor.data<float>());
}
inline constexpr int64_t kWgradBlocks = 128;

// How a gradient is cut: blocks of filters, each of which adds `part` tiles of pixels.
struct WgradSplit {
  int64_t tiles, blocks, part, parts;
};
template <class Tile>
WgradSplit split_of(int N, int H, int W, int K, int C) {
  WgradSplit s;
  s.tiles = pixel_tiles<Tile>(N, H, W);
  s.blocks = ceil_div(K, Tile::BM) * ceil_div(C, Tile::BN) * Tile::kPhases;
  const int64_t wanted = std::clamp<int64_t>(ceil_div(kWgradBlocks, s.blocks), 1, s.tiles);
  s.part = ceil_div(s.tiles, wanted), s.parts = ceil_div(s.tiles, s.part);
  ENSURE(s.tiles <= INT32_MAX && s.blocks <= INT32_MAX, "conv2d: ", s.tiles, " tiles");
  return s;
}

// a's sums of a split.
template <class Tile>
void launch_wgrad(Stream& stream, int N, const Image<bf16>& x, const WgradSplit& s, WgradArgs a) {
  a.tiles = int(s.tiles), a.tiles_per_part = int(s.part);
  ENSURE(Tile::kHasBias || !a.db, "conv2d: a bias of phases");
  const bool async = has_wgmma(stream.device().info());
  launch_next<conv_halo_wgrad_kernel<Tile>>(
      {cuda_stream(stream), dim3(unsigned(s.blocks), 1, unsigned(s.parts)),
       dim3(Tile::kThreads + (async ? gemm::kCopiers : 0)),
       async ? sizeof(WgradShared<Tile, true>) : sizeof(WgradShared<Tile, false>)},
      x, HaloSizes(Tile{}, N, x.H, x.W, x.C), a);
}

// Calls f(tile) for pixels of images W wide.
template <int R, class F>
void with_wgrad_tile(int W, const F& f) {
  W > 8 ? f(WgradTile<1, 16, R>{}) : f(WgradTile<2, 8, R>{});
}

// The gradient of w's channels `first` and on, those of x; dw [K,3,3,..]. In conv2d_bwd_weight.cu.
void run_halo_wgrad(Stream& stream, int N, const Image<bf16>& x, const Tensor& dy, Grad dw,
                    int first, Grad db);

}  // namespace tessera::TESSERA_CUDA::conv
