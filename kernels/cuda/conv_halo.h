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
// the input's next 32 channels are on their way while this one is multiplied.
#pragma once

#include "kernels/cuda/conv_problem.h"
#include "kernels/cuda/gemm_mma.h"

namespace tessera::TESSERA_CUDA::conv {

using gemm::MmaOperandTile;
using gemm::WarpSums;

// A block's pixels TH x TW of one image and channels BN, and the part of a warp: WM x WN of these.
template <int TH_, int TW_, int BN_, int WM_, int WN_>
struct HaloTile {
  static constexpr int TN = 1, TH = TH_, TW = TW_, BN = BN_, WM = WM_, WN = WN_;
  static constexpr int BM = TH * TW;
  static constexpr int kThreads = 32 * (BM / WM) * (BN / WN);
  template <class T>
  static constexpr int BK = 32;
  static_assert(TW % 8 == 0 && TH % 2 == 0 && BM % WM == 0 && BN % WN == 0 && BN % 64 == 0);
};

// The pixels of a tile in 32 channels of the input, with their border.
template <int TN, int TH, int TW, int channels>
struct HaloPlanes {
  static constexpr int kWidth = TW + 2, kPixels = TN * (TH + 2) * kWidth;
  static constexpr int kChunks = channels / 8;
  // Of a plane, in pixels.
  static constexpr int kPlane = kPixels + ((kChunks == 4 ? 2 : 1) - kPixels % 8 + 8) % 8;

  alignas(128) bf16 elements[kChunks][kPlane][8];

  // The m-th of the tile's pixels, in the plane: tap (0,0) of its window.
  static __device__ __forceinline__ int pixel(int m) {
    const int x = m % TW, y = m / TW % TH, n = m / (TW * TH);
    return (n * (TH + 2) + y) * kWidth + x;
  }

  // Starts to load channels c and on for the tile whose first pixel is `first`; zeros outside.
  template <int Threads, class Image>
  __device__ __forceinline__ void fill(const Image& image, int N, const Place& first, int c) {
    for (int i = int(threadIdx.x); i < kPixels * kChunks; i += Threads) {
      const int pixel = i / kChunks, chunk = i % kChunks;
      const int n = first.n + pixel / ((TH + 2) * kWidth);
      const int h = first.h - 1 + pixel / kWidth % (TH + 2), w = first.w - 1 + pixel % kWidth;
      const bool has_pixel = n < N && unsigned(h) < unsigned(image.H) &&
                             unsigned(w) < unsigned(image.W) && c + 8 * chunk < image.channels();
      ptx::cp_async16(elements[chunk][pixel],
                      has_pixel ? image.at(n, h, w, c + 8 * chunk) : image.any(),
                      has_pixel ? 16 : 0);
    }
  }
};

// What the taps (r,s) of a step's products read of it: the operand A of WarpSums.
template <class Planes>
struct HaloWindows {
  const Planes& planes;
  int tap;  // r * kWidth + s

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
// Of the data's gradient, a convolution of dy by the filter turned around: columns c, in which
// memory runs, depth k.
struct TurnedFilters {
  static constexpr bool kAlongDepth = false;
  const bf16* w;
  int depth, columns;  // K, C
  __device__ __forceinline__ const bf16* at(int c, int k, int r, int s) const {
    return w + (int64_t(k) * 9 + 8 - (3 * r + s)) * columns + c;
  }
};

template <class Tile, bool along_depth>
struct FilterRow {
  MmaOperandTile<bf16, Tile::BN, 32, along_depth> taps[3];

  // Starts to load row r of the taps, depth `depth` and on.
  template <class Filters>
  __device__ __forceinline__ void fill(const Filters& filters, int column, int depth, int r) {
    constexpr int kPacks = (along_depth ? 32 : Tile::BN) / 8;  // of a line
    constexpr int kLines = along_depth ? Tile::BN : 32;
    for (int i = int(threadIdx.x); i < 3 * kLines * kPacks; i += Tile::kThreads) {
      const int point = i % kPacks * 8, line = i / kPacks % kLines, s = i / (kPacks * kLines);
      const int x = column + (along_depth ? line : point), k = depth + (along_depth ? point : line);
      const bool has_filter = x < filters.columns && k < filters.depth;
      ptx::cp_async16(taps[s].pack(line, point), has_filter ? filters.at(x, k, r, s) : filters.w,
                      has_filter ? 16 : 0);
    }
  }
};

// What a block has computed, rounded, and room for its warps to add up sums over pixels.
template <class Tile>
struct HaloResults {
  alignas(128) bf16 out[Tile::BM][Tile::BN + 8];  // rows of 16 bytes more: no bank conflicts
  float sums[2][Tile::kThreads / 32][Tile::BN];
};

template <class Tile, bool along_depth>
struct HaloShared {
  using Planes = HaloPlanes<1, Tile::TH, Tile::TW, 32>;
  union {
    struct {
      Planes input[2];
      FilterRow<Tile, along_depth> filters[2];
    };
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
        tiles_w(int(ceil_div(W, Tile::TW))),
        tiles_h(int(ceil_div(H, Tile::TH))) {}

  // The first pixel of the i-th tile.
  template <class Tile>
  __device__ __forceinline__ Place tile(int i) const {
    const int w = tiles_w.divide(i), h = tiles_h.divide(i);
    return {i * Tile::TN, h * Tile::TH, w * Tile::TW};
  }
};

// The m-th pixel of a tile.
template <class Tile>
__device__ __forceinline__ Place pixel_of(const Place& first, int m) {
  return {first.n, first.h + m / Tile::TW, first.w + m % Tile::TW};
}

// A block's sums -> shared memory, rounded, with the bias, and with what the output holds where it
// is added to.
template <class Tile, class Output>
__device__ __forceinline__ void put_sums(const WarpSums<Tile>& sums, const HaloSizes& sizes,
                                         const Place& first, int column, int row, int warp_column,
                                         const Output& output, HaloResults<Tile>& results) {
  const int lane = int(threadIdx.x) % 32;
  TESSERA_UNROLL
  for (int i = 0; i < WarpSums<Tile>::kRows * 2; ++i) {
    const int m = row + 8 * i + lane / 4;
    TESSERA_UNROLL
    for (int j = 0; j < WarpSums<Tile>::kColumns; ++j) {
      const int x = warp_column + 8 * j + lane % 4 * 2;
      const float* pair = &sums.sums[i / 2][j][i % 2 * 2];
      Pack<bf16, 2> two;
      const auto before = output.before(sizes, pixel_of<Tile>(first, m), column + x);
      two.set(0, pair[0] + before[0]);
      two.set(1, pair[1] + before[1]);
      two.store(&results.out[m][x]);
    }
  }
}

template <class Tile, class Image, class Filters, class Output>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kThreads == 256 ? Output::kBlocks : 0)
    conv_halo_kernel(Image image, Filters filters, HaloSizes sizes, Output output) {
  using Shared = HaloShared<Tile, Filters::kAlongDepth>;
  using Planes = typename Shared::Planes;
  auto& shared = shared_memory<Shared>();
  int block = int(blockIdx.x);
  const int column = sizes.column_tiles.divide(block) * Tile::BN;
  const Place first = sizes.tile<Tile>(block);
  const int warp = int(threadIdx.x) / 32, kAcross = Tile::BN / Tile::WN;
  const int row = warp / kAcross * Tile::WM, warp_column = warp % kAcross * Tile::WN;

  const int steps = (filters.depth + 31) / 32 * 3;
  shared.input[0].template fill<Tile::kThreads>(image, sizes.N, first, 0);
  shared.filters[0].fill(filters, column, 0, 0);
  ptx::cp_async_commit();
  WarpSums<Tile> sums;
  for (int step = 0; step < steps; ++step) {
    const int part = step / 3, r = step % 3;
    ptx::cp_async_wait<0>();
    __syncthreads();  // all have this step, and nobody reads the previous one any more
    if (step + 1 < steps) {
      shared.filters[(step + 1) % 2].fill(filters, column, (step + 1) / 3 * 32, (step + 1) % 3);
      if (r == 0 && (part + 1) * 32 < filters.depth)
        shared.input[(part + 1) % 2].template fill<Tile::kThreads>(image, sizes.N, first,
                                                                   (part + 1) * 32);
      ptx::cp_async_commit();
    }
    TESSERA_UNROLL
    for (int s = 0; s < 3; ++s)
      sums.template multiply<bf16>(
          HaloWindows<Planes>{shared.input[part % 2], r * Planes::kWidth + s},
          shared.filters[step % 2].taps[s], row, warp_column);
  }
  __syncthreads();  // the results take the place of what was multiplied
  put_sums<Tile>(sums, sizes, first, column, row, warp_column, output, shared.results);
  __syncthreads();
  output.store(sizes, first, column, shared.results);
}

}  // namespace tessera::TESSERA_CUDA::conv
