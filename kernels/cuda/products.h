// Products of tiles in shared memory by tensor cores: the operands' layout, and the sums of a warp
// or a warpgroup with the instructions that add to them.
//
// A tile of an operand is a matrix of lines, as memory has it: [BX][BK] where memory runs along
// depth, [BK][BX] where it runs across. A line is a row of chunks of 16 bytes, and chunk i of line
// l is kept at i ^ swizzle(l), so that the 8 lines that one 8x8 matrix of ldmatrix touches are in
// 8 different groups of 4 banks. For example, lines of 4 chunks (64 bytes, BK of either type):
//
//     bytes   0   16   32   48   64   80   96  112
//            | line 0: 0 1 2 3  | line 1: 0 1 2 3  |   swizzle 0
//            | line 2: 1 0 3 2  | line 3: 1 0 3 2  |   swizzle 1
//            | line 4: 2 3 0 1  | line 5: 2 3 0 1  |   swizzle 2
//            | line 6: 3 2 1 0  | line 7: 3 2 1 0  |   swizzle 3
//
// (the numbers are chunks; one column of any of them meets all 8 groups). Lines of 8 chunks and
// more: swizzle l % 8. ldmatrix cannot transpose f32: there the lanes read single words, 8
// neighbours in each of 4 lines, which are in different banks with swizzle 2 l % 8. Lines longer
// than 8 chunks are cut into pieces of 8, and the first pieces of all lines come first. These are
// the layouts Swizzle64 and Swizzle128 of ptx/wgmma.h.
#pragma once

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/ptx/ldmatrix.h"
#include "kernels/cuda/ptx/mma.h"
#include "kernels/cuda/ptx/wgmma.h"

namespace tessera::TESSERA_CUDA::gemm {

// One operand's tile of one stage; x counts along BX, k along BK.
template <class T, int BX, int BK, bool along_depth>
struct MmaOperandTile {
  static constexpr bool kAlongDepth = along_depth;
  static constexpr int kLine = along_depth ? BK : BX, kLines = along_depth ? BX : BK;
  static constexpr int kPerChunk = 16 / int(sizeof(T)), kChunks = kLine / kPerChunk;
  static constexpr int kPiece = kChunks < 8 ? kLine : 8 * kPerChunk;
  static constexpr bool kByWords = sizeof(T) == 4 && !along_depth;
  static_assert(kChunks == 4 || kChunks % 8 == 0);

  alignas(1024) T elements[kLines * kLine];

  static __device__ __forceinline__ int swizzle(int line) {
    if (kByWords) return 2 * line % 8;
    return kChunks == 4 ? line / 2 % 4 : line % 8;
  }
  __device__ __forceinline__ const T* chunk(int line, int i) const {
    return elements + (i / 8 * kLines + line) * kPiece + (i % 8 ^ swizzle(line)) * kPerChunk;
  }
  // The pack that begins at a point of a line.
  __device__ __forceinline__ T* pack(int line, int point) {
    return const_cast<T*>(chunk(line, point / kPerChunk));
  }
  // One element of a tile that runs across.
  __device__ __forceinline__ uint32_t word(int x, int k) const {
    return __float_as_uint(chunk(k, x / kPerChunk)[x % kPerChunk]);
  }

  // The 16 x (32 bytes) of A at x, k as fragments of mma.
  __device__ __forceinline__ void load_a(uint32_t (&r)[4], int x, int k, int lane) const {
    if constexpr (along_depth) {
      ptx::ldmatrix_x4(r, chunk(x + lane % 16, k / kPerChunk + lane / 16));
    } else if constexpr (!kByWords) {
      ptx::ldmatrix_x4_trans(r, chunk(k + lane / 16 * 8 + lane % 8, x / 8 + lane / 8 % 2));
    } else {
      TESSERA_UNROLL
      for (int i = 0; i < 4; ++i) r[i] = word(x + lane / 4 + i % 2 * 8, k + lane % 4 + i / 2 * 4);
    }
    round(r);
  }
  // The same of B: r[0..1] for the 8 columns from x, r[2..3] for the next 8.
  __device__ __forceinline__ void load_b(uint32_t (&r)[4], int x, int k, int lane) const {
    if constexpr (along_depth) {
      ptx::ldmatrix_x4(r, chunk(x + lane / 16 * 8 + lane % 8, k / kPerChunk + lane / 8 % 2));
    } else if constexpr (!kByWords) {
      ptx::ldmatrix_x4_trans(r, chunk(k + lane % 16, x / 8 + lane / 16));
    } else {
      TESSERA_UNROLL
      for (int i = 0; i < 4; ++i) r[i] = word(x + lane / 4 + i / 2 * 8, k + lane % 4 + i % 2 * 4);
    }
    round(r);
  }

  // What begins at x, k, for wgmma.
  __device__ __forceinline__ ptx::SharedMatrix matrix(int x, int k) const {
    static_assert(sizeof(T) == 2);
    if constexpr (along_depth)
      return ptx::SharedMatrix(elements, 0, 8 * kLine * 2, ptx::Layout::Swizzle64)
          .further((x * kLine + k) * 2);
    else
      return ptx::SharedMatrix(elements, kLines * 128, 8 * 128, ptx::Layout::Swizzle128)
          .further((x / 64 * kLines + k) * 128);
  }

 private:
  static __device__ __forceinline__ void round(uint32_t (&r)[4]) {
    if constexpr (sizeof(T) == 4) {
      TESSERA_UNROLL
      for (int i = 0; i < 4; ++i) r[i] = ptx::to_tf32(__uint_as_float(r[i]));
    }
  }
};

// Sums of the rows of A's fragments, bf16: of the two that a thread has of each.
struct FragmentSums {
  float rows[2] = {};

  // Not by mma.sync, whose tensor cores have the products that are under way before it.
  __device__ __forceinline__ void add(const uint32_t (&a)[4]) {
    TESSERA_UNROLL
    for (int i = 0; i < 4; ++i)
      rows[i % 2] += __uint_as_float(a[i] << 16) + __uint_as_float(a[i] & 0xFFFF0000);
  }
  // f(row, sum) for the 16 rows of a warp, from `first` on.
  template <class F>
  __device__ __forceinline__ void each(int first, const F& f) const {
    const int lane = int(threadIdx.x) % 32;
    for (int i = 0; i < 2; ++i) {
      float sum = rows[i];
      for (int lanes = 1; lanes < 4; lanes *= 2) sum += __shfl_xor_sync(0xFFFFFFFF, sum, lanes);
      if (lane % 4 == 0) f(first + lane / 4 + 8 * i, sum);
    }
  }
};

// ---- Sums of a block's tile BM x BN.
//
//   kAsync           whether products go on behind multiply(), as mainloop.h has it:
//   kGroups          groups, the last of a step, do so at most
//   multiply(a, b)   adds the products of one stage's depth, and A's rows, for each_sum
//   commit()         behind a step's last multiply(), of which there is one if A runs across depth
//   each_row(f)      f(row, column, count, pair) for what a thread has of a row of the tile:
//                    pair(j) are two neighbours, from 8 j columns further on, j < count, a constant
//   each_sum(f)      f(row, sum of A's row), where A is bf16 and runs across depth; all threads
//                    come
//
// A tile says where its rows lie: row(n, i) is the first of the i-th 8 rows of the n-th 64.

// By mma.sync, 8.0 and up: a warp has WM x WN.
template <class Tile, class T>
class WarpProducts {
 public:
  static constexpr bool kAsync = false;
  __device__ __forceinline__ WarpProducts() {
    const int warp = int(threadIdx.x) / 32, kAcross = Tile::BN / Tile::WN;
    row_ = warp / kAcross * Tile::WM, column_ = warp % kAcross * Tile::WN;
  }
  __device__ __forceinline__ void commit() {}

  template <class A, class B>
  __device__ __forceinline__ void multiply(const A& a, const B& b) {
    constexpr int kStep = 32 / int(sizeof(T));  // depth of one mma
    const int lane = int(threadIdx.x) % 32;
    TESSERA_UNROLL
    for (int k = 0; k < Tile::template BK<T>; k += kStep) {
      uint32_t left[kRows][4], right[kColumns / 2][4];
      TESSERA_UNROLL
      for (int i = 0; i < kRows; ++i) {
        a.load_a(left[i], row_ + 16 * i, k, lane);
        if constexpr (sizeof(T) == 2 && !A::kAlongDepth)
          if (column_ == 0) of_a_[i].add(left[i]);
      }
      TESSERA_UNROLL
      for (int j = 0; j < kColumns / 2; ++j) b.load_b(right[j], column_ + 16 * j, k, lane);
      TESSERA_UNROLL
      for (int i = 0; i < kRows; ++i) {
        TESSERA_UNROLL
        for (int j = 0; j < kColumns; ++j) {
          const uint32_t pair[2] = {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]};
          if constexpr (sizeof(T) == 2)
            ptx::mma_m16n8k16<T>(sums_[i][j], left[i], pair);
          else
            ptx::mma_m16n8k8_tf32(sums_[i][j], left[i], pair);
        }
      }
    }
  }
  template <class F>
  __device__ __forceinline__ void each_row(const F& f) const {
    const int lane = int(threadIdx.x) % 32;
    TESSERA_UNROLL
    for (int i = 0; i < kRows * 2; ++i)
      f(row_ + 8 * i + lane / 4, column_ + lane % 4 * 2, std::integral_constant<int, kColumns>{},
        [&](int j) { return &sums_[i / 2][j][i % 2 * 2]; });
  }
  template <class F>
  __device__ __forceinline__ void each_sum(const F& f) const {
    if (column_ != 0) return;
    for (int i = 0; i < kRows; ++i) of_a_[i].each(row_ + 16 * i, f);
  }

 private:
  static constexpr int kRows = Tile::WM / 16, kColumns = Tile::WN / 8;
  float sums_[kRows][kColumns][4] = {};
  FragmentSums of_a_[kRows];
  int row_, column_;
};

// By wgmma, 9.0a, bf16: a warpgroup has kSquares times 64 rows by BN. An A that runs across depth
// goes through registers, where ldmatrix.trans brings it as fast as any.
template <class Tile, bool a_along = true>
class GroupProducts {
  static constexpr int kSquares = Tile::BM / 64 / (Tile::kThreads / 128);
  static constexpr int kDepth = Tile::template BK<bf16>;
  static_assert(kSquares > 0 && Tile::kThreads % 128 == 0);

 public:
  static constexpr bool kAsync = true;
  static constexpr int kGroups = a_along ? 1 : kDepth / 16;
  __device__ __forceinline__ GroupProducts() {
    // Descriptors are the same for a warp: the compiler shall know.
    group_ = __shfl_sync(0xFFFFFFFF, int(threadIdx.x) / 128, 0);
  }

  template <class A, class B>
  __device__ __forceinline__ void multiply(const A& a, const B& b) {
    static_assert(A::kAlongDepth == a_along);
    TESSERA_UNROLL
    for (int k = 0; k < kDepth; k += 16) {
      if constexpr (!a_along) load(a, k);
      TESSERA_UNROLL
      for (int i = 0; i < kSquares; ++i) {
        if constexpr (a_along)
          ptx::wgmma<Tile::BN, !B::kAlongDepth>(
              sums_[i], a.matrix(Tile::row(group_ * kSquares + i, 0), k), b.matrix(0, k));
        else
          ptx::wgmma<Tile::BN, !B::kAlongDepth>(sums_[i], a_[i][k / 16], b.matrix(0, k));
      }
      if constexpr (!a_along) ptx::wgmma_commit();
    }
  }
  __device__ __forceinline__ void commit() {
    if constexpr (a_along) ptx::wgmma_commit();
  }
  template <class F>
  __device__ __forceinline__ void each_row(const F& f) const {
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32 % 4;
    TESSERA_UNROLL
    for (int i = 0; i < kSquares; ++i) {
      TESSERA_UNROLL
      for (int half = 0; half < 2; ++half)
        f(Tile::row(group_ * kSquares + i, 2 * warp + half) + lane / 4, lane % 4 * 2,
          std::integral_constant<int, Tile::BN / 8>{},
          [&](int j) { return &sums_[i][j][2 * half]; });
    }
  }
  template <class F>
  __device__ __forceinline__ void each_sum(const F& f) const {
    const int warp = int(threadIdx.x) / 32 % 4;
    for (int i = 0; i < kSquares; ++i) {
      FragmentSums all = of_a_[i];
      for (const auto& a : a_[i]) all.add(a);  // the last step's
      all.each(Tile::row(group_ * kSquares + i, 2 * warp), f);
    }
  }

 private:
  // The warp's rows at depth k, where the products of the stage before have ended.
  template <class A>
  __device__ __forceinline__ void load(const A& a, int k) {
    ptx::wgmma_wait<kGroups - 1>();
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32 % 4;
    TESSERA_UNROLL
    for (int i = 0; i < kSquares; ++i) {
      of_a_[i].add(a_[i][k / 16]);
      a.load_a(a_[i][k / 16], Tile::row(group_ * kSquares + i, 2 * warp), k, lane);
    }
    ptx::wgmma_fence();
  }

  float sums_[kSquares][Tile::BN / 8][4] = {};
  FragmentSums of_a_[kSquares];
  uint32_t a_[kSquares][kDepth / 16][4] = {};
  int group_;
};

}  // namespace tessera::TESSERA_CUDA::gemm
