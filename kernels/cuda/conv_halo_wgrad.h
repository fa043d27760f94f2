// The filter's gradient of the 3x3 convolutions of conv_halo.h: dw[k,r,s,c] = sum over n,p,q of
// dy[n,p,q,k] x[n,p+r-1,q+s-1,c]. A block has 64 k by 64 c of all nine taps in registers, and adds
// the products of its share of the pixels, tile by tile: depth is pixels, across which both
// operands run. The shares' sums are added in order by a second kernel.
//
// A step of mma takes 16 pixels of one row of the tile: 16 neighbours, or 8 of each of two images.
// Row y of dy meets rows y, y+1, y+2 of x's halo, of which the last two serve the next row of dy
// again and stay in registers.
//
// Over an upsampled image (conv_phase.h) the same kernel computes the gradients of the four phases'
// 2x2 filters: pixels are those of low, dy's are 2 apart, and a block has one phase.
#pragma once

#include "kernels/cuda/conv_halo.h"
#include "kernels/cuda/ptx/registers.h"

namespace tessera::TESSERA_CUDA::conv {

using gemm::FragmentSums;

// A tile of the pixels: TN images, TH rows, TW columns; R x R taps: 3, or 2 of a phase.
template <int TN_, int TW_, int R_>
struct WgradTile {
  static constexpr int TN = TN_, TH = 4, TW = TW_, kPixels = TN * TH * TW, kApart = 1;
  static constexpr int R = R_, kTaps = R * R, kPhases = R == 2 ? 4 : 1;
  static constexpr bool kHasBias = R == 3;
  static constexpr int BM = 64, BN = R == 2 ? 128 : 64;           // k, c
  static constexpr int WM = 32, WN = BN / 4;                      // of a warp
  static constexpr int kThreads = 256, kStages = R == 2 ? 3 : 4;  // of mma.sync
  // By wgmma: of a thread that multiplies, and of one that copies.
  static constexpr int kRegisters = R == 2 ? 208 : 224, kRegistersToCopy = R == 2 ? 88 : 56;
  // What a launch gives 384 threads, in eights: who waits for more waits for ever.
  static_assert(256 * kRegisters + 128 * kRegistersToCopy <= 384 * (65536 / 384 / 8 * 8));
  static_assert(TN * TW == 16 && TW % 8 == 0 && (R == 2 || R == 3));
};

// The pixels of a tile.
template <class Tile>
struct WgradStage {
  using Input = HaloPlanes<Tile::TN, Tile::TH, Tile::TW, Tile::BN, Tile::R - 1>;
  Input x;
  MmaOperandTile<bf16, Tile::BM, Tile::kPixels, false> dy;  // lines: pixels, row by row
};

// async: products are wgmma's. Registers leave a multiprocessor no room for a second block, so the
// first may have all of its shared memory. Else what every card from 8.0 on has.
template <class Tile, bool async>
struct WgradShared {
  template <int stages>
  using Ring = WgradStage<Tile>[stages];
  static constexpr int kStages = async ? gemm::stages_in<Ring>(gemm::shared_of(1)) : Tile::kStages;
  Ring<kStages> stages;
};

// dy [N,H,W,K], or [N,2H,2W,K] with phases, and where a block's sums go, or are added: dw
// [parts,K,phases,taps,C], in rows of `row` elements, and db [parts,K] or null.
struct WgradArgs {
  const bf16* dy;
  int K, C;
  int tiles, tiles_per_part;
  float* dw;
  int row;
  float* db;
  bool add_dw, add_db;
};

// Starts to load the dy of a tile, by threads that are numbered modulo Threads.
template <class Tile, int Threads, class Lines>
__device__ __forceinline__ void fill_dy(Lines& lines, const WgradArgs& a, const HaloSizes& sizes,
                                        const Place& first, int k, int phase) {
  constexpr int kPacks = Tile::BM / 8, kApart = Tile::kPhases == 4 ? 2 : 1;
  constexpr int kAtOnce = Threads / kPacks;
  static_assert(Tile::kPixels % kAtOnce == 0 && kAtOnce % 16 == 0);
  const int thread = int(threadIdx.x) % Threads;
  const int point = thread % kPacks * 8, line = thread / kPacks;
  const int n = line % 16 / Tile::TW, h = line / 16, w = first.w + line % Tile::TW;
  const bool has_column = first.n + n < sizes.N && w < sizes.W && k + point < a.K;
  const int64_t row = (int64_t(first.n + n) * sizes.H + first.h + h) * kApart + phase / 2;
  const bf16* const from = a.dy + ((row * sizes.W + w) * kApart + phase % 2) * a.K + k + point;
  TESSERA_UNROLL
  for (int i = 0; i < Tile::kPixels; i += kAtOnce) {
    const bool inside = has_column && first.h + h + i / 16 < sizes.H;
    // Lines i further are rows i / 16 further.
    ptx::cp_async16(lines.pack(line, point) + i * Lines::kPiece,
                    from + int64_t(i / 16 * kApart * kApart * sizes.W) * a.K, inside ? 16 : 0);
  }
}

// ---- Products of a tile. each_row(f): f(k, c, tap, count, pair) for what a thread has of a row of
// the block's; pair(j) are two neighbours, from 8 j columns further on, j < count, a constant.
// each_bias(f): f(k, sum) for the sums of dy.

// By mma.sync: a warp has all taps of WM k by WN c.
template <class Tile>
class WarpWgrad {
 public:
  static constexpr bool kAsync = false;
  __device__ __forceinline__ WarpWgrad() {
    const int warp = int(threadIdx.x) / 32;
    row_ = warp / 4 * Tile::WM, column_ = warp % 4 * Tile::WN;
  }
  __device__ __forceinline__ void multiply(const WgradStage<Tile>& stage) {
    using Input = typename WgradStage<Tile>::Input;
    const int lane = int(threadIdx.x) % 32, j = lane % 16;
    const int pixel = j / Tile::TW * Input::kHeight * Input::kWidth + j % Tile::TW;
    uint32_t x[R][R][kPacks][4];  // rows of the halo (mod R), shifts
    TESSERA_UNROLL
    for (int y = 0; y < Tile::TH; ++y) {
      uint32_t dy[2][4];
      TESSERA_UNROLL
      for (int i = 0; i < 2; ++i) {
        stage.dy.load_a(dy[i], row_ + 16 * i, 16 * y, lane);
        if (Tile::kHasBias && column_ == 0) bias_[i].add(dy[i]);
      }
      TESSERA_UNROLL
      for (int tap = 0; tap < Tile::kTaps; ++tap) {
        const int r = tap / R, s = tap % R;
        TESSERA_UNROLL
        for (int pack = 0; pack < kPacks; ++pack) {
          uint32_t(&b)[4] = x[(y + r) % R][s][pack];
          if (y == 0 || r == R - 1)
            ptx::ldmatrix_x4_trans(b, stage.x.elements[column_ / 8 + 2 * pack + lane / 16]
                                                      [pixel + (y + r) * Input::kWidth + s]);
          TESSERA_UNROLL
          for (int i = 0; i < 2; ++i) {
            TESSERA_UNROLL
            for (int half = 0; half < 2; ++half) {
              const uint32_t pair[2] = {b[2 * half], b[2 * half + 1]};
              ptx::mma_m16n8k16<bf16>(sums_[tap][i][2 * pack + half], dy[i], pair);
            }
          }
        }
      }
    }
  }
  template <class F>
  __device__ __forceinline__ void each_row(const F& f) const {
    const int lane = int(threadIdx.x) % 32;
    TESSERA_UNROLL
    for (int i = 0; i < 4; ++i) {
      TESSERA_UNROLL
      for (int tap = 0; tap < Tile::kTaps; ++tap)
        f(row_ + 8 * i + lane / 4, column_ + lane % 4 * 2, tap,
          std::integral_constant<int, 2 * kPacks>{},
          [&](int j) { return &sums_[tap][i / 2][j][i % 2 * 2]; });
    }
  }
  template <class F>
  __device__ __forceinline__ void each_bias(const F& f) const {
    if (column_ != 0) return;
    for (int i = 0; i < 2; ++i) bias_[i].each(row_ + 16 * i, f);
  }

 private:
  static constexpr int R = Tile::R, kPacks = Tile::WN / 16;  // of 16 c
  float sums_[Tile::kTaps][2][2 * kPacks][4] = {};
  FragmentSums bias_[2];
  int row_, column_;
};

// By wgmma: a warpgroup has some of the taps of all k and c. A warp's rows of dy are in its
// registers for all of them: an A in shared memory would be read again for each, 2 KB beside the 2
// KB of x that a product of 64 columns takes, which is as much as shared memory delivers meanwhile.
template <class Tile>
class GroupWgrad {
 public:
  static constexpr bool kAsync = true;  // asked by multiply_steps, for the check of primitives
  static constexpr int kGroups = 2;
  __device__ __forceinline__ GroupWgrad() {
    group_ = __shfl_sync(0xFFFFFFFF, int(threadIdx.x) / 128, 0);
  }
  __device__ __forceinline__ void multiply(const WgradStage<Tile>& stage) {
    if (group_ == 0)
      multiply_taps<0, kMost>(stage);
    else
      multiply_taps<kMost, Tile::kTaps - kMost>(stage);
  }
  template <class F>
  __device__ __forceinline__ void each_row(const F& f) const {
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32 % 4;
    TESSERA_UNROLL
    for (int i = 0; i < kMost; ++i) {
      if (!has(i)) break;
      const int tap = first_tap() + i;
      TESSERA_UNROLL
      for (int half = 0; half < 2; ++half)
        f(16 * warp + 8 * half + lane / 4, lane % 4 * 2, tap,
          std::integral_constant<int, Tile::BN / 8>{},
          [&](int j) { return &sums_[i][j][2 * half]; });
    }
  }
  template <class F>
  __device__ __forceinline__ void each_bias(const F& f) const {
    if (group_ != 1) return;
    FragmentSums all = bias_;
    for (const auto& dy : dy_) all.add(dy);  // the last two rows
    all.each(int(threadIdx.x) / 32 % 4 * 16, f);
  }

 private:
  static constexpr int kMost = (Tile::kTaps + 1) / 2;
  static_assert(Tile::BM == 64 && Tile::kThreads == 256 && Tile::TH % 2 == 0);

  // A row's dy take the place of those of two rows before, when the products of these have ended
  // and while those of the row between go on. The second row has waited for all of the step before.
  template <int first, int count>
  __device__ __forceinline__ void multiply_taps(const WgradStage<Tile>& stage) {
    using Input = typename WgradStage<Tile>::Input;
    constexpr int kImage = Input::kHeight * Input::kWidth;
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32 % 4;
    TESSERA_UNROLL
    for (int y = 0; y < Tile::TH; ++y) {
      auto& dy = dy_[y % 2];
      ptx::wgmma_wait<1>();
      if constexpr (first > 0 && Tile::kHasBias) bias_.add(dy);  // the group of fewer taps
      stage.dy.load_a(dy, 16 * warp, 16 * y, lane);
      ptx::wgmma_fence();
      TESSERA_UNROLL
      for (int i = 0; i < count; ++i) {
        constexpr int R = Tile::R;
        const int shift = (y + (first + i) / R) * Input::kWidth + (first + i) % R;
        ptx::wgmma<Tile::BN, true>(
            sums_[i], dy,
            ptx::SharedMatrix(stage.x.elements, (Tile::TN == 1 ? 8 : kImage) * 16,
                              int(sizeof stage.x.elements[0]), ptx::Layout::Plain)
                .further(shift * 16));
      }
      ptx::wgmma_commit();
    }
  }

  __device__ __forceinline__ int first_tap() const { return group_ * kMost; }
  // The second group has one less of an odd number.
  __device__ __forceinline__ bool has(int i) const {
    return i < Tile::kTaps - kMost || group_ == 0;
  }

  float sums_[kMost][Tile::BN / 8][4] = {};
  FragmentSums bias_;
  uint32_t dy_[2][4] = {};
  int group_;
};

// Sums -> dw of a part and phase, from k and c on.
template <class Sums>
__device__ __forceinline__ void put_wgrad(const Sums& sums, const WgradArgs& a, int taps, float* dw,
                                          int k, int c) {
  sums.each_row([&](int row, int column, int tap, auto pairs, const auto& pair) {
    if (k + row >= a.K) return;
    float* const to = dw + (int64_t(k + row) * taps + tap) * a.row + c + column;
    Pack<float, 2> old[pairs] = {};
    if (a.add_dw) {
      TESSERA_UNROLL
      for (int j = 0; j < pairs; ++j)
        if (c + column + 8 * j < a.C) old[j] = Pack<float, 2>::load(to + 8 * j);
    }
    TESSERA_UNROLL
    for (int j = 0; j < pairs; ++j) {
      const float two[2] = {old[j][0] + pair(j)[0], old[j][1] + pair(j)[1]};
      if (c + column + 8 * j < a.C) Pack<float, 2>::of(two).store(to + 8 * j);
    }
  });
}

// Where a block works: the tiles `first` to end - 1 of one phase's 64 k by BN c.
template <class Tile>
struct WgradPlace {
  int k, c, phase, first, end;

  __device__ __forceinline__ WgradPlace(const HaloSizes& sizes, const WgradArgs& a) {
    int block = int(blockIdx.x);
    c = sizes.column_tiles.divide(block) * Tile::BN;
    phase = block % Tile::kPhases, k = block / Tile::kPhases * Tile::BM;
    first = int(blockIdx.z) * a.tiles_per_part;
    end = min(first + a.tiles_per_part, a.tiles);
  }
};

template <class Tile, class Sums>
__device__ __forceinline__ void put_block(const Sums& sums, const WgradArgs& a,
                                          const WgradPlace<Tile>& at) {
  constexpr int kAll = Tile::kPhases * Tile::kTaps;
  const int64_t k = int64_t(blockIdx.z) * a.K;  // the part's first
  put_wgrad(sums, a, kAll, a.dw + (k * kAll + at.phase * Tile::kTaps) * a.row, at.k, at.c);
  if constexpr (Tile::kHasBias)
    if (a.db && at.c + Tile::BN >= a.C)  // one of the blocks that read the same dy
      sums.each_bias([&](int row, float sum) {
        if (at.k + row < a.K) put_at(a.db + k + at.k + row, sum, a.add_db);
      });
}

// Blocks: (tiles of k by phases by tiles of c, 1, parts of the pixels). On 9.0a warps of their own
// copy: those that multiply would need more time for it than tensor cores for the products.
template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads + gemm::kCopiersHere, 1)
    conv_halo_wgrad_kernel(Image<bf16> image, HaloSizes sizes, WgradArgs a) {
  ptx::begin_kernel();
  const WgradPlace<Tile> at(sizes, a);
  const auto start = [&]<int threads>(auto& ring, int step) {
    auto& stage = ring[step % std::extent_v<std::remove_reference_t<decltype(ring)>>];
    const Place place = sizes.tile<Tile>(step);
    stage.x.template fill<threads>(
        image, sizes.N, {place.n, place.h - 1 + at.phase / 2, place.w - 1 + at.phase % 2}, at.c);
    fill_dy<Tile, threads>(stage.dy, a, sizes, place, at.k, at.phase);
  };
  static_assert(sizeof(WgradShared<Tile, false>) <= 99 * 1024);
  if (ptx::has_wgmma()) {
    using Shared = WgradShared<Tile, true>;
    constexpr int kStages = Shared::kStages;
    auto& ring = shared_memory<Shared>().stages;
    if (threadIdx.x >= Tile::kThreads) {
      ptx::fewer_registers<Tile::kRegistersToCopy>();
      gemm::copy_steps<kStages, Tile::kThreads>(at.first, at.end, [&](int step) {
        start.template operator()<gemm::kCopiers>(ring, step);
      });
    } else {
      ptx::more_registers<Tile::kRegisters>();
      GroupWgrad<Tile> sums;
      gemm::multiply_copied<kStages, Tile::kThreads>(
          at.first, at.end, [&](int step) { sums.multiply(ring[step % kStages]); });
      put_block(sums, a, at);
    }
  } else {
    using Shared = WgradShared<Tile, false>;
    constexpr int kStages = Shared::kStages;
    auto& ring = shared_memory<Shared>().stages;
    WarpWgrad<Tile> sums;
    gemm::multiply_steps<kStages, WarpWgrad<Tile>>(
        at.first, at.end, [&](int step) { start.template operator()<Tile::kThreads>(ring, step); },
        [&](int step) { sums.multiply(ring[step % kStages]); });
    put_block(sums, a, at);
  }
}

}  // namespace tessera::TESSERA_CUDA::conv
