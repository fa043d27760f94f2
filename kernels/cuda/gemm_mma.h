// The mainloop for tensor cores (sm_80 and up): bf16, or f32 rounded to tf32, sums in f32.
// cp.async fills a ring of kStages stages, mma.sync reads them through ldmatrix.
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
// neighbours in each of 4 lines, which are in different banks with swizzle 2 l % 8.
#pragma once

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/ptx/cp_async.h"
#include "kernels/cuda/ptx/ldmatrix.h"
#include "kernels/cuda/ptx/mma.h"

namespace tessera::TESSERA_CUDA::gemm {

// A block's tile, and the part of it that a warp has.
template <int BM_, int BN_, int WM_, int WN_>
struct MmaTile {
  static constexpr bool kTensorCores = true;
  static constexpr int BM = BM_, BN = BN_, WM = WM_, WN = WN_;
  static constexpr int kThreads = 32 * (BM / WM) * (BN / WN);
  static constexpr int kStages = 4;
  template <class T>
  static constexpr int BK = 64 / int(sizeof(T));
  static_assert(BM % WM == 0 && BN % WN == 0 && WM % 16 == 0 && WN % 16 == 0);
};

// One operand's tile of one stage; x counts along BX, k along BK.
template <class T, int BX, int BK, bool along_depth>
struct MmaOperandTile {
  static constexpr int kLine = along_depth ? BK : BX, kLines = along_depth ? BX : BK;
  static constexpr int kPerChunk = 16 / int(sizeof(T)), kChunks = kLine / kPerChunk;
  static constexpr bool kByWords = sizeof(T) == 4 && !along_depth;
  static_assert(kChunks == 4 || kChunks % 8 == 0);

  alignas(128) T elements[kLines * kLine];

  static __device__ __forceinline__ int swizzle(int line) {
    if (kByWords) return 2 * line % 8;
    return kChunks == 4 ? line / 2 % 4 : line % 8;
  }
  __device__ __forceinline__ const T* chunk(int line, int i) const {
    return elements + line * kLine + (i ^ swizzle(line)) * kPerChunk;
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

 private:
  static __device__ __forceinline__ void round(uint32_t (&r)[4]) {
    if constexpr (sizeof(T) == 4) {
      TESSERA_UNROLL
      for (int i = 0; i < 4; ++i) r[i] = ptx::to_tf32(__uint_as_float(r[i]));
    }
  }
};

template <class Tile, class A, class B>
struct MmaShared {
  using T = typename A::Element;
  static constexpr int BK = Tile::template BK<T>;
  struct {
    MmaOperandTile<T, Tile::BM, BK, A::kAlongDepth> a;
    MmaOperandTile<T, Tile::BN, BK, B::kAlongDepth> b;
  } stages[Tile::kStages];
};

// Starts to load a tile. What is not packed goes through registers and is there at once.
template <class Loader, class Shared>
__device__ __forceinline__ void fill(Shared& tile, const Loader& loader, int depth) {
  loader.each(depth, [&](int pass, int j, const typename Loader::T* from) {
    typename Loader::T* to = tile.pack(loader.line(pass), loader.point());
    if constexpr (Loader::kPacked)
      ptx::cp_async16(to, from ? from : loader.any(), from ? 16 : 0);
    else
      to[j] = from ? *from : typename Loader::T{};
  });
}

// The results of one warp.
template <class Tile>
struct WarpSums {
  static constexpr int kRows = Tile::WM / 16, kColumns = Tile::WN / 8;
  float sums[kRows][kColumns][4] = {};

  template <class T, class TileA, class TileB>
  __device__ __forceinline__ void multiply(const TileA& a, const TileB& b, int row, int column) {
    constexpr int kStep = 32 / int(sizeof(T));  // depth of one mma
    const int lane = int(threadIdx.x) % 32;
    TESSERA_UNROLL
    for (int k = 0; k < Tile::template BK<T>; k += kStep) {
      uint32_t left[kRows][4], right[kColumns / 2][4];
      TESSERA_UNROLL
      for (int i = 0; i < kRows; ++i) a.load_a(left[i], row + 16 * i, k, lane);
      TESSERA_UNROLL
      for (int j = 0; j < kColumns / 2; ++j) b.load_b(right[j], column + 16 * j, k, lane);
      TESSERA_UNROLL
      for (int i = 0; i < kRows; ++i) {
        TESSERA_UNROLL
        for (int j = 0; j < kColumns; ++j) {
          const uint32_t pair[2] = {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]};
          if constexpr (sizeof(T) == 2)
            ptx::mma_m16n8k16<T>(sums[i][j], left[i], pair);
          else
            ptx::mma_m16n8k8_tf32(sums[i][j], left[i], pair);
        }
      }
    }
  }

  template <class Out>
  __device__ __forceinline__ void put(const GemmSizes& sizes, const Epilogue<Out>& epilogue,
                                      int row, int column) const {
    const int lane = int(threadIdx.x) % 32;
    TESSERA_UNROLL
    for (int i = 0; i < kRows; ++i) {
      TESSERA_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        TESSERA_UNROLL
        for (int half = 0; half < 2; ++half) {
          const float two[2] = {sums[i][j][2 * half], sums[i][j][2 * half + 1]};
          epilogue.put(sizes, row + 16 * i + 8 * half + lane / 4, column + 8 * j + lane % 4 * 2,
                       two);
        }
      }
    }
  }
};

template <class Tile, class A, class B, class Out, bool packed>
__global__ void __launch_bounds__(Tile::kThreads)
    gemm_mma_kernel(A a, B b, GemmSizes sizes, Epilogue<Out> epilogue) {
  using T = typename A::Element;
  constexpr int BK = Tile::template BK<T>, kStages = Tile::kStages;
  auto& shared = shared_memory<MmaShared<Tile, A, B>>();
  const BlockPlace<Tile> place(sizes);
  const TileLoader<A, Tile::BM, BK, Tile::kThreads, packed> loader_a(a, place.row);
  const TileLoader<B, Tile::BN, BK, Tile::kThreads, packed> loader_b(b, place.column);
  const int warp = int(threadIdx.x) / 32, kAcross = Tile::BN / Tile::WN;
  const int row = warp / kAcross * Tile::WM, column = warp % kAcross * Tile::WN;

  // Each step commits one group, an empty one past the end, so that the waits can count them.
  const auto start = [&](int stage, int depth) {
    if (depth < place.end) {
      fill(shared.stages[stage].a, loader_a, depth);
      fill(shared.stages[stage].b, loader_b, depth);
    }
    ptx::cp_async_commit();
  };
  TESSERA_UNROLL
  for (int i = 0; i < kStages - 1; ++i) start(i, place.depth + i * BK);

  WarpSums<Tile> sums;
  int stage = 0;
  for (int depth = place.depth; depth < place.end; depth += BK) {
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();  // all have this stage, and nobody reads the previous one any more
    start((stage + kStages - 1) % kStages, depth + (kStages - 1) * BK);
    sums.template multiply<T>(shared.stages[stage].a, shared.stages[stage].b, row, column);
    stage = (stage + 1) % kStages;
  }
  sums.put(sizes, epilogue, place.row + row, place.column + column);
}

}  // namespace tessera::TESSERA_CUDA::gemm
