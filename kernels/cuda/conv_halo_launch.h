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
  return stream.device().info().capability >= 80 && s.R == 3 && s.S == 3 && s.stride == 1 &&
         s.pad_h == 1 && s.pad_w == 1;
}

// Images that a tile of 8 x 8 would be mostly zeros for: forward and the data's gradient are left
// to the implicit product.
inline bool is_tiny(int H, int W) { return H < 5 || W < 5; }

// ---- Outputs: before(...) is what is added to a pixel's sums in two neighbouring channels,
// store() takes a block's results from shared memory to where they belong. kBlocks: see
// BlocksWanted.

struct Two {
  float values[2];
  __device__ __forceinline__ float operator[](int i) const { return values[i]; }
};
__device__ __forceinline__ bool is_inside(const HaloSizes& s, const Place& at) {
  return at.n < s.N && at.h < s.H && at.w < s.W;
}
__device__ __forceinline__ int64_t pixel_number(const Place& at, int H, int W) {
  return int64_t(at.n * H + at.h) * W + at.w;
}
__device__ __forceinline__ Two load_two(const bf16* from) {
  const auto two = Pack<bf16, 2>::load(from);
  return {two[0], two[1]};
}

// y [N,H,W,K] = sums + bias, or += sums, rounded once.
struct HaloImage {
  static constexpr int kBlocks = 0;
  bf16* y;
  const float* bias;  // or null
  int K;
  bool accumulate;

  __device__ __forceinline__ Two before(const HaloSizes& sizes, const Place& at, int k) const {
    if (k >= K) return {};
    if (bias) return {bias[k], bias[k + 1]};
    if (!accumulate || !is_inside(sizes, at)) return {};
    return load_two(y + pixel_number(at, sizes.H, sizes.W) * K + k);
  }
  template <class Tile>
  __device__ __forceinline__ void store(const HaloSizes& sizes, const Place& first, int column,
                                        const HaloResults<Tile>& results) const {
    constexpr int kPacks = Tile::BN / 8;
    for (int i = int(threadIdx.x); i < Tile::BM * kPacks; i += Tile::kThreads) {
      const int m = i / kPacks, x = i % kPacks * 8;
      const Place at = pixel_of<Tile>(first, m);
      if (!is_inside(sizes, at) || column + x >= K) continue;
      Pack<bf16, 8>::load(&results.out[m][x])
          .store(y + pixel_number(at, sizes.H, sizes.W) * K + column + x);
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
      return call.template operator()<ConvTile::k2x8x8x64, 64, 32>();
    case ConvTile::k8x8x64:
      return call.template operator()<ConvTile::k8x8x64, 32, 32>();
  }
}
template <class Filters>
ConvTile tile_for(Stream& stream, int N, const Image<bf16>& x, const Filters& filters) {
  return stream.state<ConvTiles>().choose(
      stream.device().info().capability,
      {!Filters::kAlongDepth, N, x.H, x.W, filters.columns, filters.depth});
}

// Whether a block finds its shared memory on every card from 8.0 on: 8.6 and 8.9 have 99 KB.
template <class Tile, class Source>
inline constexpr bool kFitsAllCards = sizeof(HaloShared<Tile, Source>) <= 99 * 1024;

template <class Tile, class Source, class Output>
void launch_halo(Stream& stream, int N, int H, int W, int columns, const Source& source,
                 const Output& output) {
  static_assert(kFitsAllCards<Tile, Source>);
  const int64_t blocks = pixel_tiles<Tile>(N, H, W) * ceil_div(columns, Tile::BN);
  ENSURE(blocks <= INT32_MAX, "conv2d: ", blocks, " blocks");
  launch<conv_halo_kernel<Tile, Source, Output>>(
      {cuda_stream(stream), dim3(unsigned(blocks)), dim3(Tile::kThreads),
       sizeof(HaloShared<Tile, Source>)},
      source, HaloSizes(Tile{}, N, H, W, columns), output);
}

// Windows of x, of which y has the pixels.
template <class Filters>
void run_halo(Stream& stream, int N, const Image<bf16>& x, const Filters& filters,
              const HaloImage& y) {
  with_halo_tile(tile_for(stream, N, x, filters), [&](auto tile) {
    launch_halo<decltype(tile)>(stream, N, x.H, x.W, filters.columns,
                                HaloSource<Filters>{x, filters}, y);
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
  launch<conv_halo_wgrad_kernel<Tile>>(
      {cuda_stream(stream), dim3(unsigned(s.blocks), 1, unsigned(s.parts)), dim3(Tile::kThreads),
       sizeof(WgradShared<Tile>)},
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
