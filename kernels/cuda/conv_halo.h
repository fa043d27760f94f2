// 3x3 convolutions (stride 1, padding 1) of bf16 on tensor cores by halo tiles: the mainloop that
// forward and the data's gradient share. A block computes TH x TW pixels by BN channels. For
// each 32 channels of the input it loads its pixels and their border once, and all nine taps read
// them there: an implicit matrix product would load every pixel nine times.
//
// The input's part in shared memory is made of planes of 8 channels: [c / 8][n][y][x][8]. A pixel
// has 16 bytes, so the 8 neighbouring pixels that an 8x8 matrix of ldmatrix takes are 128
// contiguous bytes, at any shift: no bank conflicts, no swizzle.
//
//     plane 0                        plane 1
//     +---------------------+        +------
//     | 0   1   2  ...  TW+1|        |            tap (r,s) of pixel (y,x): pixel (y+r, x+s) of
//     |   +-------------+   |        |            the plane, a constant offset
//     |   | TH x TW     |   |        |
//     |   +-------------+   |        |            a pixel: 16 bytes, 8 channels
//     +---------------------+        +------
//
// Planes begin 2 pixels (mod 8) apart, so that the threads that fill them, four chunks of one pixel
// and four of the next, write to 8 different groups of banks; 1 pixel where a pixel has 8 chunks.
//
// A step is one row of taps: 3 x 32 of depth. Filters of the next step and, once in three steps,
// the input's next 32 channels are on their way while this one is multiplied. What a step loads and
// multiplies is a Source: conv_phase.h has others for the same mainloop.
#pragma once

#include "kernels/cuda/conv_problem.h"
#include "kernels/cuda/gemm_mma.h"

namespace tessera::TESSERA_CUDA::conv {

using gemm::MmaOperandTile;
using gemm::WarpSums;

// A block's pixels TH x TW of TN images and channels BN, and the part of a warp: WM x WN of these.
// Neighbours in a tile are `apart` pixels from each other in the image.
template <int TH_, int TW_, int BN_, int WM_, int WN_, int apart = 1, int TN_ = 1>
struct HaloTile {
  static constexpr int TN = TN_, TH = TH_, TW = TW_, BN = BN_, WM = WM_, WN = WN_, kApart = apart;
  static constexpr int BM = TN * TH * TW;
  static constexpr int kThreads = 32 * (BM / WM) * (BN / WN);
  template <class T>
  static constexpr int BK = 32;
  static_assert(TW % 8 == 0 && TH % 2 == 0 && BM % WM == 0 && BN % WN == 0 && BN % 64 == 0);
};

// Pixels of the input in planes.
template <int pixels, int channels>
struct PixelPlanes {
  static constexpr int kPixels = pixels, kChunks = channels / 8;
  // Of a plane, in pixels.
  static constexpr int kPlane = kPixels + ((kChunks == 4 ? 2 : 1) - kPixels % 8 + 8) % 8;

  alignas(128) bf16 elements[kChunks][kPlane][8];

  // Starts to load channels c and on of one chunk of a pixel; zeros outside of the images.
  __device__ __forceinline__ void load(int pixel, int chunk, const Image<bf16>& image, int N,
                                       const Place& at, int c) {
    const bool has_pixel = at.n < N && unsigned(at.h) < unsigned(image.H) &&
                           unsigned(at.w) < unsigned(image.W) && c + 8 * chunk < image.C;
    ptx::cp_async16(elements[chunk][pixel],
                    has_pixel ? image.at(at.n, at.h, at.w, c + 8 * chunk) : image.x,
                    has_pixel ? 16 : 0);
  }
};

// The pixels of a tile in `channels` of the input, with `border` rows and columns more.
template <int TN, int TH, int TW, int channels, int border = 2>
struct HaloPlanes : PixelPlanes<TN*(TH + border) * (TW + border), channels> {
  using Base = PixelPlanes<TN*(TH + border) * (TW + border), channels>;
  static constexpr int kHeight = TH + border, kWidth = TW + border;

  // The m-th of the tile's pixels, in the plane: tap (0,0) of its window.
  static __device__ __forceinline__ int pixel(int m) {
    const int x = m % TW, y = m / TW % TH, n = m / (TW * TH);
    return (n * kHeight + y) * kWidth + x;
  }

  // Starts to load channels c and on; the upper left pixel of the window of the tile's first pixel
  // is `corner`.
  template <int Threads>
  __device__ __forceinline__ void fill(const Image<bf16>& image, int N, const Place& corner,
                                       int c) {
    for (int i = int(threadIdx.x); i < Base::kPixels * Base::kChunks; i += Threads) {
      const int pixel = i / Base::kChunks;
      const Place at{corner.n + pixel / (kHeight * kWidth), corner.h + pixel / kWidth % kHeight,
                     corner.w + pixel % kWidth};
      this->load(pixel, i % Base::kChunks, image, N, at, c);
    }
  }
};

// What a tap of a step's products reads of planes: the operand A of WarpSums.
template <class Planes>
struct HaloWindows {
  const Planes& planes;
  int tap;  // from the first tap's pixel to this one's

  __device__ __forceinline__ void load_a(uint32_t (&r)[4], int m, int k, int lane) const {
    ptx::ldmatrix_x4(r, planes.elements[k / 8 + lane / 16][Planes::pixel(m + lane % 16) + tap]);
  }
};

// ---- The filters: at(column, depth, r, s) is the address of 8 neighbours.

// w [K,3,3,C] of a forward convolution: columns k, depth c, in which memory runs.
struct StraightFilters {
  static constexpr bool kAlongDepth = true;
  const bf16* w;
  int depth, columns;  // C, K
  __device__ __forceinline__ const bf16* at(int k, int c, int r, int s) const {
    return w + (int64_t(k) * 9 + 3 * r + s) * depth + c;
  }
};
// Of the data's gradient, a convolution of dy by the filter turned around: columns c, `columns` of
// its C from w on, in which memory runs, depth k.
struct TurnedFilters {
  static constexpr bool kAlongDepth = false;
  const bf16* w;
  int depth, columns, C;  // depth: K
  __device__ __forceinline__ const bf16* at(int c, int k, int r, int s) const {
    return w + (int64_t(k) * 9 + 8 - (3 * r + s)) * C + c;
  }
};

// The taps of a step.
template <class Tile, bool along_depth, int count>
struct FilterRow {
  MmaOperandTile<bf16, Tile::BN, 32, along_depth> taps[count];

  // Starts to load taps (r, 0 ..), depth `depth` and on.
  template <class Filters>
  __device__ __forceinline__ void fill(const Filters& filters, int column, int depth, int r) {
    constexpr int kPacks = (along_depth ? 32 : Tile::BN) / 8;  // of a line
    constexpr int kLines = along_depth ? Tile::BN : 32;
    for (int i = int(threadIdx.x); i < count * kLines * kPacks; i += Tile::kThreads) {
      const int point = i % kPacks * 8, line = i / kPacks % kLines, s = i / (kPacks * kLines);
      const int x = column + (along_depth ? line : point), k = depth + (along_depth ? point : line);
      const bool has_filter = x < filters.columns && k < filters.depth;
      ptx::cp_async16(taps[s].pack(line, point), has_filter ? filters.at(x, k, r, s) : filters.w,
                      has_filter ? 16 : 0);
    }
  }
};

// ---- Sources: what the steps of a block load and multiply. Two steps are in shared memory.

// Where a block works, and the part of it that its warp has.
struct BlockPlace {
  int N;
  Place first;  // pixel
  int column, row, warp_column;
};

// 3x3 windows of an image.
template <class Filters>
struct HaloSource {
  static constexpr int kBlocks = 0;
  Image<bf16> image;
  Filters filters;

  template <class Tile>
  struct Shared {
    HaloPlanes<Tile::TN, Tile::TH, Tile::TW, 32> input[2];
    FilterRow<Tile, Filters::kAlongDepth, 3> filters[2];
  };
  __device__ __forceinline__ int steps() const { return (filters.depth + 31) / 32 * 3; }

  template <class Tile>
  __device__ __forceinline__ void start(Shared<Tile>& shared, const BlockPlace& at,
                                        int step) const {
    const int part = step / 3, r = step % 3;
    shared.filters[step % 2].fill(filters, at.column, part * 32, r);
    if (r == 0)
      shared.input[part % 2].template fill<Tile::kThreads>(
          image, at.N, {at.first.n, at.first.h - 1, at.first.w - 1}, part * 32);
  }
  template <class Tile>
  __device__ __forceinline__ void multiply(const Shared<Tile>& shared, const BlockPlace& at,
                                           int step, WarpSums<Tile>& sums) const {
    using Planes = HaloPlanes<Tile::TN, Tile::TH, Tile::TW, 32>;
    TESSERA_UNROLL
    for (int s = 0; s < 3; ++s)
      sums.template multiply<bf16>(
          HaloWindows<Planes>{shared.input[step / 3 % 2], step % 3 * Planes::kWidth + s},
          shared.filters[step % 2].taps[s], at.row, at.warp_column);
  }
};

// What a block has computed, rounded, and room for its warps to add up sums over pixels.
template <class Tile>
struct HaloResults {
  alignas(128) bf16 out[Tile::BM][Tile::BN + 8];  // rows of 16 bytes more: no bank conflicts
  float sums[2][Tile::kThreads / 32][Tile::BN];
};

template <class Tile, class Source>
struct HaloShared {
  union {
    typename Source::template Shared<Tile> steps;
    HaloResults<Tile> results;
  };
};

// N images of H x W pixels in tiles.
struct HaloSizes {
  int N, H, W;
  Divisor32 column_tiles, tiles_w, tiles_h;

  template <class Tile>
  HaloSizes(Tile, int N, int H, int W, int columns)
      : N(N),
        H(H),
        W(W),
        column_tiles(int(ceil_div(columns, Tile::BN))),
        tiles_w(int(ceil_div(W, Tile::TW * Tile::kApart))),
        tiles_h(int(ceil_div(H, Tile::TH * Tile::kApart))) {}

  // The first pixel of the i-th tile. Those of the same rectangle follow each other.
  template <class Tile>
  __device__ __forceinline__ Place tile(int i) const {
    constexpr int kApart = Tile::kApart;
    const int phase = i % (kApart * kApart);
    i /= kApart * kApart;
    const int w = tiles_w.divide(i), h = tiles_h.divide(i);
    return {i * Tile::TN, h * Tile::TH * kApart + phase / kApart,
            w * Tile::TW * kApart + phase % kApart};
  }
};

// The m-th pixel of a tile.
template <class Tile>
__device__ __forceinline__ Place pixel_of(const Place& first, int m) {
  return {first.n + m / (Tile::TH * Tile::TW), first.h + m / Tile::TW % Tile::TH * Tile::kApart,
          first.w + m % Tile::TW * Tile::kApart};
}

// A block's sums -> shared memory, rounded, with the bias, and with what the output holds where it
// is added to.
template <class Tile, class Output>
__device__ __forceinline__ void put_sums(const WarpSums<Tile>& sums, const HaloSizes& sizes,
                                         const BlockPlace& at, const Output& output,
                                         HaloResults<Tile>& results) {
  const int lane = int(threadIdx.x) % 32;
  TESSERA_UNROLL
  for (int i = 0; i < WarpSums<Tile>::kRows * 2; ++i) {
    const int m = at.row + 8 * i + lane / 4;
    TESSERA_UNROLL
    for (int j = 0; j < WarpSums<Tile>::kColumns; ++j) {
      const int x = at.warp_column + 8 * j + lane % 4 * 2;
      const float* pair = &sums.sums[i / 2][j][i % 2 * 2];
      const auto before = output.before(sizes, pixel_of<Tile>(at.first, m), at.column + x);
      const float two[2] = {pair[0] + before[0], pair[1] + before[1]};
      Pack<bf16, 2>::of(two).store(&results.out[m][x]);
    }
  }
}

// Blocks of 256 threads that registers must leave room for on a multiprocessor; 0: as the compiler
// likes.
template <class Tile, class Source, class Output>
struct BlocksWanted {
  static constexpr int most = Source::kBlocks > Output::kBlocks ? Source::kBlocks : Output::kBlocks;
  static constexpr int value = Tile::kThreads == 256 ? most : 0;
};

template <class Tile, class Source, class Output>
__global__ void __launch_bounds__(Tile::kThreads, BlocksWanted<Tile, Source, Output>::value)
    conv_halo_kernel(Source source, HaloSizes sizes, Output output) {
  auto& shared = shared_memory<HaloShared<Tile, Source>>();
  int block = int(blockIdx.x);
  const int column = sizes.column_tiles.divide(block) * Tile::BN;
  const int warp = int(threadIdx.x) / 32, kAcross = Tile::BN / Tile::WN;
  const BlockPlace at{sizes.N, sizes.tile<Tile>(block), column, warp / kAcross * Tile::WM,
                      warp % kAcross * Tile::WN};

  const int steps = source.steps();
  source.template start<Tile>(shared.steps, at, 0);
  ptx::cp_async_commit();
  WarpSums<Tile> sums;
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait<0>();
    __syncthreads();  // all have this step, and nobody reads the previous one any more
    if (step + 1 < steps) {
      source.template start<Tile>(shared.steps, at, step + 1);
      ptx::cp_async_commit();
    }
    source.template multiply<Tile>(shared.steps, at, step, sums);
  }
  __syncthreads();  // the results take the place of what was multiplied
  put_sums<Tile>(sums, sizes, at, output, shared.results);
  __syncthreads();
  output.store(sizes, at.first, at.column, shared.results);
}

}  // namespace tessera::TESSERA_CUDA::conv
