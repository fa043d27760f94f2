// The sub-pixel form of 3x3 convolutions over x = concat(upsample(low), skip), on the mainloop of
// conv_halo.h. Output pixels (2y+p, 2x+q) of one phase (p,q) see each pixel of low through the sum
// of the taps that fall on it: a 2x2 filter over low, and 4/9 of the products; exact, at the
// borders too. (Shi et al., "Real-time single image and video super-resolution using an efficient
// sub-pixel convolutional neural network", 2016, have the idea.)
//
//     tap r of w, output row 2y+p        -> row y+p-1+u of low
//     p = 0:  r 0 -> u 0,  r 1,2 -> u 1     f[k,2p+q,2u+v,a] = sum over the taps (r,s) of (u,v)
//     p = 1:  r 0,1 -> u 0,  r 2 -> u 1     (upcat_phases)
//
// Forward: a block has a tile of one phase, pixels that are 2 apart. For each 32 channels of low
// one step multiplies the phase's four taps. Skip is read in full: a step is one row of the 3x3
// taps, for which it has the rows that they meet, 2 apart.
// Gradient of low: a 4x4 convolution of dy with stride 2, by the same filters turned around:
// dlow[y,x] = sum over i,j of dy[2y-1+i, 2x-1+j] f(p 1-i%2, q 1-j%2, u 1-i/2, v 1-j/2). A step is
// one row of these taps.
//
// Rows that are read 2 apart have their even columns first, then the odd ones: what 8 neighbours of
// a tile read under one tap are 128 contiguous bytes here, too.
#pragma once

#include "kernels/cuda/conv_halo.h"

namespace tessera::TESSERA_CUDA::conv {

// One row of taps for each of TH rows of TN images, all 2 apart, in 32 channels.
template <int TN, int TH, int TW, int taps>
struct SplitRows : PixelPlanes<TN * TH*(2 * TW + taps - 2), 32> {
  static constexpr int kWidth = 2 * TW + taps - 2, kOdd = TW + 1;  // where odd columns begin

  static __device__ __forceinline__ int pixel(int m) { return m / TW * kWidth + m % TW; }
  static __device__ __forceinline__ int place(int column) { return column / 2 + column % 2 * kOdd; }
  // Starts to load channels c and on; the first tap of the first pixel reads `corner`. A thread
  // keeps to a column of the first 2 TW, and one pass more takes what is right of these. The 8
  // threads that write at once have an even column and the odd one behind it, or a column of two
  // rows: no bank conflicts.
  template <int Threads>
  __device__ __forceinline__ void fill(const Image<bf16>& image, int N, const Place& corner,
                                       int c) {
    constexpr int kAtOnce = Threads / 4, kRows = kAtOnce / (2 * TW), kRest = kWidth - 2 * TW;
    static_assert(kAtOnce == kRows * 2 * TW && TH % kRows == 0 && TN * TH * kRest <= kAtOnce);
    // Registers are short: nothing of this is kept while products run.
    const int thread = anew(int(threadIdx.x)), chunk = thread % 4, first = thread / 4;
    const ImageCorner from(image, N, corner, c);
    const bool has_channels = c + 8 * chunk < image.C;
    const int column = first % (2 * TW), row = first / (2 * TW);
    const bool inside = has_channels && unsigned(corner.w + column) < unsigned(image.W);
    const int64_t step = int64_t(2 * kRows) * image.W * image.C;
    for (int n = 0; n < TN; ++n) {
      bf16* to = this->elements[chunk][(n * TH + row) * kWidth + place(column)];
      const bf16* pack = from.pack(n, 2 * row, column, chunk);
      // Outside of any image also for columns, images and channels that are not there.
      int h = inside && corner.n + n < N ? corner.h + 2 * row : INT32_MIN;
      // Not unrolled: that would take more registers than two blocks on a multiprocessor leave.
      TESSERA_NO_UNROLL
      for (int i = 0; i < TH / kRows; ++i) {
        ptx::cp_async16(to, pack, unsigned(h) < unsigned(image.H) ? 16 : 0);
        to += 8 * kRows * kWidth, pack += step, h += 2 * kRows;
      }
    }
    if (first < TN * TH * kRest) {
      const int right = 2 * TW + first % kRest, line = first / kRest;
      from.load(this->elements[chunk][line * kWidth + place(right)], line / TH, 2 * (line % TH),
                right, chunk, has_channels);
    }
  }
};

// Of phases [K,4,4,A], those of one phase, from w on: columns k, depth a, in which memory runs;
// s = 2u+v.
struct PhaseFilters {
  const bf16* w;
  int depth, columns;  // A, K
  __device__ __forceinline__ int column_stride() const { return 16 * depth; }
  __device__ __forceinline__ int tap_stride() const { return depth; }
  static __device__ __forceinline__ int tap(int, int s) { return s; }
};
// `depth` of the channels of w [K,3,3,..], from w on; `row` of them are there.
struct SkipFilters {
  const bf16* w;
  int depth, columns, row;
  __device__ __forceinline__ int column_stride() const { return 9 * row; }
  __device__ __forceinline__ int tap_stride() const { return row; }
  static __device__ __forceinline__ int tap(int r, int s) { return 3 * r + s; }
};

// Forward: windows of both parts. Tiles are 2 apart.
struct PhaseSource {
  static constexpr int kBlocks = 2, kStages = 2;
  Image<bf16> low, skip;
  const bf16 *phases, *w;
  int K;

  template <class Tile>
  struct Low {
    HaloPlanes<Tile::TN, Tile::TH, Tile::TW, 32, 1> input;
    FilterRow<Tile, 4> filters;
  };
  template <class Tile>
  struct Skip {
    SplitRows<Tile::TN, Tile::TH, Tile::TW, 3> input;
    FilterRow<Tile, 3> filters;
  };
  template <class Tile>
  union Stage {
    Low<Tile> low;
    Skip<Tile> skip;
  };
  template <class Tile, int stages>
  struct Shared {
    Stage<Tile> all[stages];
  };

  __device__ __forceinline__ int low_steps() const { return (low.C + 31) / 32; }
  __device__ __forceinline__ int steps() const { return low_steps() + (skip.C + 31) / 32 * 3; }

  template <class Tile, int stages>
  __device__ __forceinline__ void start(Shared<Tile, stages>& shared, const BlockPlace& at,
                                        int step) const {
    auto& stage = shared.all[step % stages];
    const int phase = at.first.h % 2 * 2 + at.first.w % 2, first_of_skip = low_steps();
    if (step < first_of_skip) {
      const PhaseFilters filters{phases + phase * 4 * low.C, low.C, K};
      stage.low.filters.fill(filters, at.column, step * 32, 0);
      stage.low.input.template fill<Tile::kThreads>(
          low, at.N, {at.first.n, (at.first.h + 1) / 2 - 1, (at.first.w + 1) / 2 - 1}, step * 32);
    } else {
      const int part = (step - first_of_skip) / 3, r = (step - first_of_skip) % 3;
      const SkipFilters filters{w + low.C, skip.C, K, low.C + skip.C};
      stage.skip.filters.fill(filters, at.column, part * 32, r);
      stage.skip.input.template fill<Tile::kThreads>(
          skip, at.N, {at.first.n, at.first.h - 1 + r, at.first.w - 1}, part * 32);
    }
  }
  template <class Tile, int stages, class Sums>
  __device__ __forceinline__ void multiply(const Shared<Tile, stages>& shared, int step,
                                           Sums& sums) const {
    const auto& stage = shared.all[step % stages];
    if (step < low_steps()) {
      using Planes = decltype(stage.low.input);
      TESSERA_UNROLL
      for (int s = 0; s < 4; ++s)
        sums.multiply(HaloWindows<Planes>{stage.low.input, s / 2 * Planes::kWidth + s % 2},
                      stage.low.filters.taps[s]);
      sums.commit();
    } else {
      using Planes = decltype(stage.skip.input);
      TESSERA_UNROLL
      for (int s = 0; s < 3; ++s)
        sums.multiply(HaloWindows<Planes>{stage.skip.input, Planes::place(s)},
                      stage.skip.filters.taps[s]);
      sums.commit();
    }
  }
};

// Of phases that are turned around, [A,4,4,K]: columns a, depth k. Tap (r,s) of a 4x4 filter is of
// phase (1 - r % 2, 1 - s % 2) and there tap (1 - r / 2, 1 - s / 2), whose place counts from the
// end.
struct TurnedPhases {
  const bf16* w;
  int depth, columns;  // K, A
  __device__ __forceinline__ int column_stride() const { return 16 * depth; }
  __device__ __forceinline__ int tap_stride() const { return depth; }
  static __device__ __forceinline__ int tap(int r, int s) {
    return 4 * (2 * (r % 2) + s % 2) + 2 * (r / 2) + s / 2;
  }
};

// The gradient of low: tiles of its pixels.
struct PhaseGradSource {
  static constexpr int kBlocks = 2, kStages = 2;
  Image<bf16> dy;
  TurnedPhases filters;

  template <class Tile, int stages>
  struct Shared {
    FilterRow<Tile, 4> filters[stages];  // first: their alignment costs nothing here
    SplitRows<Tile::TN, Tile::TH, Tile::TW, 4> input[stages];
  };

  __device__ __forceinline__ int steps() const { return (filters.depth + 31) / 32 * 4; }
  template <class Tile, int stages>
  __device__ __forceinline__ void start(Shared<Tile, stages>& shared, const BlockPlace& at,
                                        int step) const {
    const int part = step / 4, r = step % 4;
    shared.filters[step % stages].fill(filters, at.column, part * 32, r);
    shared.input[step % stages].template fill<Tile::kThreads>(
        dy, at.N, {at.first.n, 2 * at.first.h - 1 + r, 2 * at.first.w - 1}, part * 32);
  }
  template <class Tile, int stages, class Sums>
  __device__ __forceinline__ void multiply(const Shared<Tile, stages>& shared, int step,
                                           Sums& sums) const {
    using Planes = SplitRows<Tile::TN, Tile::TH, Tile::TW, 4>;
    TESSERA_UNROLL
    for (int s = 0; s < 4; ++s)
      sums.multiply(HaloWindows<Planes>{shared.input[step % stages], Planes::place(s)},
                    shared.filters[step % stages].taps[s]);
    sums.commit();
  }
};

}  // namespace tessera::TESSERA_CUDA::conv
