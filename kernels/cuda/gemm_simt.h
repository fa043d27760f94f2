// The mainloop for every architecture: products and sums in f32, registers hold the result. Two
// tiles of each operand are in shared memory as floats, whatever the storage: while one is
// multiplied, the next is loaded into registers, then stored into the other.
//
//   a[stage][k][m]   k = 0 .. BK-1, m = 0 .. BM-1, and 4 floats of padding a row: threads that
//                    transpose (an operand whose memory runs along depth) write rows k, k+4, ...
//                    at the same m to different banks, and rows stay aligned for packs of 4.
//   b[stage][k][n]   the same
//
// A thread has TM x TN results, in groups of 4 x 4 that are BM / (TM/4) rows and BN / (TN/4)
// columns apart: the threads of a warp read neighbouring packs.
#pragma once

#include "kernels/cuda/gemm.h"

namespace tessera::TESSERA_CUDA::gemm {

template <int BM_, int BN_, int TM_, int TN_>
struct SimtTile {
  static constexpr bool kTensorCores = false;
  static constexpr int BM = BM_, BN = BN_, TM = TM_, TN = TN_;
  static constexpr int kThreads = BM / TM * (BN / TN);
  template <class T>
  static constexpr int BK = 16;
};

template <class Tile>
struct SimtShared {
  static constexpr int BK = 16;
  alignas(16) float a[2][BK][Tile::BM + 4];
  alignas(16) float b[2][BK][Tile::BN + 4];
};

// Loads a tile into registers, and stores it as floats.
template <class Loader>
class StagedTile {
 public:
  __device__ __forceinline__ void load(const Loader& loader, int depth) {
    loader.each(depth, [&](int pass, int j, const T* from) {
      if constexpr (Loader::kPacked) {
        packs_[pass] = from ? Pack<T, V>::load(from) : Pack<T, V>{};
      } else {
        packs_[pass].values[j] = from ? *from : T{};
      }
    });
  }

  template <int Width>
  __device__ __forceinline__ void store(const Loader& loader, float (*tile)[Width]) const {
    TESSERA_UNROLL
    for (int pass = 0; pass < Loader::kPasses; ++pass) {
      const int line = loader.line(pass), point = loader.point();
      if constexpr (Loader::kAlongDepth) {
        TESSERA_UNROLL
        for (int j = 0; j < V; ++j) tile[point + j][line] = packs_[pass][j];
      } else {
        TESSERA_UNROLL
        for (int j = 0; j < V; j += 4) {
          Pack<float, 4> four;
          TESSERA_UNROLL
          for (int e = 0; e < 4; ++e) four.values[e] = packs_[pass][j + e];
          four.store(&tile[line][point + j]);
        }
      }
    }
  }

 private:
  using T = typename Loader::T;
  static constexpr int V = Loader::V;
  Pack<T, V> packs_[Loader::kPasses];
};

template <class Tile, class A, class B, class Out, bool packed>
__global__ void __launch_bounds__(Tile::kThreads)
    gemm_simt_kernel(A a, B b, GemmSizes sizes, Epilogue<Out> epilogue) {
  ptx::begin_kernel();
  constexpr int BM = Tile::BM, BN = Tile::BN, TM = Tile::TM, TN = Tile::TN;
  constexpr int BK = SimtShared<Tile>::BK, kAcross = BN / TN;
  auto& shared = shared_memory<SimtShared<Tile>>();
  const BlockPart<Tile> place(sizes);
  const int y = int(threadIdx.x) / kAcross * 4, x = int(threadIdx.x) % kAcross * 4;

  using LoaderA = TileLoader<A, BM, BK, Tile::kThreads, packed>;
  using LoaderB = TileLoader<B, BN, BK, Tile::kThreads, packed>;
  const LoaderA loader_a(a, place.row);
  const LoaderB loader_b(b, place.column);
  StagedTile<LoaderA> next_a;
  StagedTile<LoaderB> next_b;
  next_a.load(loader_a, place.depth);
  next_b.load(loader_b, place.depth);
  next_a.store(loader_a, shared.a[0]);
  next_b.store(loader_b, shared.b[0]);
  __syncthreads();

  float sums[TM][TN] = {};
  int stage = 0;
  for (int depth = place.depth; depth < place.end; depth += BK, stage ^= 1) {
    const bool more = depth + BK < place.end;
    if (more) {
      next_a.load(loader_a, depth + BK);
      next_b.load(loader_b, depth + BK);
    }
    TESSERA_UNROLL
    for (int k = 0; k < BK; ++k) {
      Pack<float, 4> left[TM / 4], right[TN / 4];
      TESSERA_UNROLL
      for (int i = 0; i < TM / 4; ++i)
        left[i] = Pack<float, 4>::load(&shared.a[stage][k][i * (BM / (TM / 4)) + y]);
      TESSERA_UNROLL
      for (int j = 0; j < TN / 4; ++j)
        right[j] = Pack<float, 4>::load(&shared.b[stage][k][j * (BN / (TN / 4)) + x]);
      TESSERA_UNROLL
      for (int i = 0; i < TM; ++i) {
        TESSERA_UNROLL
        for (int j = 0; j < TN; ++j) sums[i][j] += left[i / 4][i % 4] * right[j / 4][j % 4];
      }
    }
    if (more) {  // the other stage was read before the last barrier
      next_a.store(loader_a, shared.a[stage ^ 1]);
      next_b.store(loader_b, shared.b[stage ^ 1]);
    }
    __syncthreads();
  }

  TESSERA_UNROLL
  for (int i = 0; i < TM; ++i) {
    const int row = place.row + i / 4 * (BM / (TM / 4)) + y + i % 4;
    TESSERA_UNROLL
    for (int j = 0; j < TN; j += 4) {
      epilogue.template put<1, 4>(sizes, row, place.column + j / 4 * (BN / (TN / 4)) + x,
                                  [&](int, int k) { return sums[i][j + k]; });
    }
  }
}

}  // namespace tessera::TESSERA_CUDA::gemm
