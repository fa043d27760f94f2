// 3x3 convolutions (stride 1, padding 1) of bf16 on tensor cores by halo tiles: what forward and
// the data's gradient share. A block computes TH x TW pixels by BN channels. For each 32 channels
// of the input it loads its pixels and their border once, and all nine taps read them there: an
// implicit matrix product would load every pixel nine times.
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
// A step is one row of taps: 3 x 32 of depth. Filters of the next steps and, once in three steps,
// the input's next 32 channels are on their way while this one is multiplied. What a step loads and
// multiplies is a Source: conv_phase.h has others.
#pragma once

#include "kernels/cuda/conv_problem.h"
#include "kernels/cuda/gemm_mma.h"

namespace tessera::TESSERA_CUDA::conv {

using gemm::GroupProducts;
using gemm::MmaOperandTile;
using gemm::WarpProducts;

// A block's pixels TH x TW of TN images and channels BN, and the part of a warp: WM x WN of these.
// Neighbours in a tile are `apart` pixels from each other in the image.
template <int TH_, int TW_, int BN_, int WM_, int WN_, int apart = 1, int TN_ = 1>
struct HaloTile {
  static constexpr int TN = TN_, TH = TH_, TW = TW_, BN = BN_, WM = WM_, WN = WN_, kApart = apart;
  static constexpr int BM = TN * TH * TW;
  static constexpr int kThreads = 32 * (BM / WM) * (BN / WN);
  static constexpr int kBlocks = 512 / kThreads;  // that 128 registers leave a multiprocessor
  template <class T>
  static constexpr int BK = 32;
  static_assert(TW % 8 == 0 && TH % 8 == 0 && BM % WM == 0 && BN % WN == 0 && BN % 64 == 0);

  // The first of the i-th 8 pixels of the n-th square of 8 x 8.
  static __device__ __forceinline__ int row(int n, int i) {
    return (n / (TW / 8) * TW + n % (TW / 8)) * 8 + i * TW;
  }
};

// Pixels of the input in planes.
template <int pixels, int channels>
struct PixelPlanes {
  static constexpr int kPixels = pixels, kChunks = channels / 8;
  // Of a plane, in pixels.
  static constexpr int kPlane = kPixels + ((kChunks == 4 ? 2 : 1) - kPixels % 8 + 8) % 8;

  alignas(128) bf16 elements[kChunks][kPlane][8];
};

// A rectangle of an image that a block loads: its corner, which may be outside.
struct ImageCorner {
  const Image<bf16>& image;
  int N;
  Place at;
  int packs;           // of a pixel
  const bf16* corner;  // of the channels that are loaded

  __device__ __forceinline__ ImageCorner(const Image<bf16>& image, int N, const Place& at, int c)
      : image(image),
        N(N),
        at(at),
        packs(image.C / 8),
        corner(image.x + ((int64_t(at.n) * image.H + at.h) * image.W + at.w) * image.C + c) {}

  // Starts to load the pack `chunk` of the pixel n images, h rows and w columns further.
  __device__ __forceinline__ void load(bf16* to, int n, int h, int w, int chunk,
                                       bool has_channels) const {
    const bool inside = has_channels && at.n + n < N && unsigned(at.h + h) < unsigned(image.H) &&
                        unsigned(at.w + w) < unsigned(image.W);
    ptx::cp_async16(to, pack(n, h, w, chunk), inside ? 16 : 0);
  }
  __device__ __forceinline__ const bf16* pack(int n, int h, int w, int chunk) const {
    // Less than 2^31 for pixels that are there (has_halo_kernels); others may go round.
    const int offset = int(((unsigned(n) * image.H + h) * image.W + w) * packs + chunk);
    return corner + int64_t(offset) * 8;
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
  // is `corner`. By threads that are numbered modulo Threads.
  template <int Threads>
  __device__ __forceinline__ void fill(const Image<bf16>& image, int N, const Place& corner,
                                       int c) {
    constexpr int kAtOnce = Threads / Base::kChunks;
    const int thread = int(threadIdx.x) % Threads;
    const int chunk = thread % Base::kChunks, first = thread / Base::kChunks;
    const ImageCorner from(image, N, corner, c);
    const bool has_channels = c + 8 * chunk < image.C;
    bf16* const to = this->elements[chunk][first];
    TESSERA_UNROLL
    for (int i = 0; i < Base::kPixels; i += kAtOnce) {
      const int pixel = i + first;
      if (i + kAtOnce > Base::kPixels && pixel >= Base::kPixels) break;
      from.load(to + i * 8, pixel / (kHeight * kWidth), pixel / kWidth % kHeight, pixel % kWidth,
                chunk, has_channels);
    }
  }
};

// What a tap of a step's products reads of planes: an operand A (products.h).
template <class Planes>
struct HaloWindows {
  static constexpr bool kAlongDepth = true;
  const Planes& planes;
  int tap;  // from the first tap's pixel to this one's

  __device__ __forceinline__ void load_a(uint32_t (&r)[4], int m, int k, int lane) const {
    ptx::ldmatrix_x4(r, planes.elements[k / 8 + lane / 16][Planes::pixel(m + lane % 16) + tap]);
  }
  // The same for wgmma: 8 x 8 pixels from m on.
  __device__ __forceinline__ ptx::SharedMatrix matrix(int m, int k) const {
    return ptx::SharedMatrix(planes.elements, int(sizeof planes.elements[0]), Planes::kWidth * 16,
                             ptx::Layout::Plain)
        .further((Planes::pixel(m) + tap) * 16 + k / 8 * int(sizeof planes.elements[0]));
  }
};

// ---- The filters: that of column x, depth k and tap (r,s) is at
//   w + x column_stride + k + tap(r,s) tap_stride.

// w [columns,3,3,depth]: columns k and depth c of a forward convolution, columns c and depth k of a
// data gradient, whose filter is turned around (turn_filters).
struct HaloFilters {
  const bf16* w;
  int depth, columns;
  __device__ __forceinline__ int column_stride() const { return 9 * depth; }
  __device__ __forceinline__ int tap_stride() const { return depth; }
  static __device__ __forceinline__ int tap(int r, int s) { return 3 * r + s; }
};

// The taps of a step.
template <class Tile, int count>
struct FilterRow {
  using Operand = MmaOperandTile<bf16, Tile::BN, 32, true>;
  Operand taps[count];

  // Starts to load taps (r, 0 ..), depth `depth` and on.
  template <class Filters>
  __device__ __forceinline__ void fill(const Filters& filters, int column, int depth, int r) {
    constexpr int kPacks = 32 / 8, kAtOnce = Tile::kThreads / kPacks;  // of a column; columns
    static_assert(Tile::BN % kAtOnce == 0 && kAtOnce % 8 == 0);
    const int point = int(threadIdx.x) % kPacks * 8, first = int(threadIdx.x) / kPacks;
    const int x = column + first, k = depth + point;
    const bf16* const from = filters.w + int64_t(x) * filters.column_stride() + k;
    TESSERA_UNROLL
    for (int line = 0; line < Tile::BN; line += kAtOnce) {
      const bool has_filter = x + line < filters.columns && k < filters.depth;
      TESSERA_UNROLL
      for (int s = 0; s < count; ++s)
        ptx::cp_async16(taps[s].pack(first, point) + line * Operand::kPiece,
                        from + int64_t(line) * filters.column_stride() +
                            filters.tap(r, s) * filters.tap_stride(),
                        has_filter ? 16 : 0);
    }
  }
};

// ---- Sources: what the steps of a block load and multiply. Shared<Tile, stages> has `stages` of
// them; kStages: of mma.sync, which leave every card from 8.0 on room for a block. multiply() ends
// with commit(): behind a branch among products ptxas would end a group of its own before it.

// Where a block works.
struct BlockPlace {
  int N;
  Place first;  // pixel
  int column;
};

// 3x3 windows of an image.
struct HaloSource {
  static constexpr int kBlocks = 0, kStages = 3;
  Image<bf16> image;
  HaloFilters filters;

  template <class Tile, int stages>
  struct Shared {
    static constexpr int kInputs = (stages + 4) / 3;  // that `stages` steps in a row may need
    HaloPlanes<Tile::TN, Tile::TH, Tile::TW, 32> input[kInputs];
    FilterRow<Tile, 3> filters[stages];
  };
  __device__ __forceinline__ int steps() const { return (filters.depth + 31) / 32 * 3; }

  template <class Tile, int stages>
  __device__ __forceinline__ void start(Shared<Tile, stages>& shared, const BlockPlace& at,
                                        int step) const {
    const int part = step / 3, r = step % 3;
    shared.filters[step % stages].fill(filters, at.column, part * 32, r);
    if (r == 0)
      shared.input[part % shared.kInputs].template fill<Tile::kThreads>(
          image, at.N, {at.first.n, at.first.h - 1, at.first.w - 1}, part * 32);
  }
  template <class Tile, int stages, class Sums>
  __device__ __forceinline__ void multiply(const Shared<Tile, stages>& shared, int step,
                                           Sums& sums) const {
    using Planes = HaloPlanes<Tile::TN, Tile::TH, Tile::TW, 32>;
    TESSERA_UNROLL
    for (int s = 0; s < 3; ++s)
      sums.multiply(HaloWindows<Planes>{shared.input[step / 3 % shared.kInputs],
                                        step % 3 * Planes::kWidth + s},
                    shared.filters[step % stages].taps[s]);
    sums.commit();
  }
};

// What a block has computed, rounded, and room for its warps to add up sums over pixels.
template <class Tile>
struct HaloResults {
  alignas(128) bf16 out[Tile::BM][Tile::BN + 8];  // rows of 16 bytes more: no bank conflicts
  float sums[2][Tile::kThreads / 32][Tile::BN];
};

// async: products are wgmma's. Their rings have as many stages as leave a multiprocessor room for
// `blocks` blocks, and no more than cover the latency of a copy: 64 channels are multiplied faster.
template <class Tile, class Source, bool async, int blocks>
struct HaloShared {
  template <int stages>
  using Steps = typename Source::template Shared<Tile, stages>;
  static constexpr int kMost = Tile::BN == 64 ? 6 : 4;
  static constexpr int kStages =
      async ? gemm::stages_in<Steps, kMost>(gemm::shared_of(blocks)) : Source::kStages;
  union {
    Steps<kStages> steps;
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
template <class Tile, class Sums, class Output>
__device__ __forceinline__ void put_sums(const Sums& sums, const HaloSizes& sizes,
                                         const BlockPlace& at, const Output& output,
                                         HaloResults<Tile>& results) {
  sums.each_row([&](int m, int x, auto pairs, const auto& pair) {
    const auto before =
        output.template before<pairs>(sizes, pixel_of<Tile>(at.first, m), at.column + x);
    TESSERA_UNROLL
    for (int j = 0; j < pairs; ++j) {
      const float two[2] = {pair(j)[0] + before.at(j, 0), pair(j)[1] + before.at(j, 1)};
      Pack<bf16, 2>::of(two).store(&results.out[m][x + 8 * j]);
    }
  });
}

// Blocks of 256 threads that registers must leave room for on a multiprocessor; 0: as the compiler
// likes.
template <class Tile, class Source, class Output, int blocks>
struct BlocksWanted {
  static constexpr int most = Source::kBlocks > Output::kBlocks ? Source::kBlocks : Output::kBlocks;
  static constexpr int value = Tile::kThreads == 256 && blocks == 2 ? most : 0;
};

template <class Tile, int blocks, class Sums, class Source, class Output>
__device__ __forceinline__ void halo_block(const Source& source, const HaloSizes& sizes,
                                           const BlockPlace& at, const Output& output) {
  using Shared = HaloShared<Tile, Source, Sums::kAsync, blocks>;
  auto& shared = shared_memory<Shared>();
  Sums sums;
  gemm::multiply_steps<Shared::kStages, Sums>(
      0, source.steps(), [&](int step) { source.start(shared.steps, at, step); },
      [&](int step) { source.multiply(shared.steps, step, sums); });
  __syncthreads();  // the results take the place of what was multiplied
  put_sums<Tile>(sums, sizes, at, output, shared.results);
  __syncthreads();
  output.store(sizes, at.first, at.column, shared.results);
}

// blocks: of a multiprocessor, for which the rings of wgmma are sized.
template <class Tile, class Source, class Output, int blocks>
__global__ void __launch_bounds__(Tile::kThreads, BlocksWanted<Tile, Source, Output, blocks>::value)
    conv_halo_kernel(Source source, HaloSizes sizes, Output output) {
  ptx::begin_kernel();
  int block = int(blockIdx.x);
  const int column = sizes.column_tiles.divide(block) * Tile::BN;
  const BlockPlace at{sizes.N, sizes.tile<Tile>(block), column};
  if (ptx::has_wgmma())
    halo_block<Tile, blocks, GroupProducts<Tile>>(source, sizes, at, output);
  else
    halo_block<Tile, blocks, WarpProducts<Tile, bf16>>(source, sizes, at, output);
}

}  // namespace tessera::TESSERA_CUDA::conv
