// Matrix products by tensor cores (sm_80 and up): bf16, or f32 rounded to tf32, sums in f32.
// cp.async fills a ring of stages, which mma.sync reads through ldmatrix, or wgmma (products.h).
#pragma once

#include "kernels/cuda/mainloop.h"
#include "kernels/cuda/products.h"

namespace tessera::TESSERA_CUDA::gemm {

// A block's tile, and the part of it that a warp has.
template <int BM_, int BN_, int WM_, int WN_>
struct MmaTile {
  static constexpr bool kTensorCores = true;
  static constexpr int BM = BM_, BN = BN_, WM = WM_, WN = WN_;
  static constexpr int kThreads = 32 * (BM / WM) * (BN / WN);
  static constexpr int kBlocks = 512 / kThreads;  // that 128 registers leave a multiprocessor
  static constexpr int kStages = 4;               // of mma.sync
  template <class T>
  static constexpr int BK = 64 / int(sizeof(T));
  static_assert(BM % WM == 0 && BN % WN == 0 && WM % 16 == 0 && WN % 16 == 0);

  // The i-th 8 rows of the n-th 64.
  static __device__ __forceinline__ int row(int n, int i) { return 64 * n + 8 * i; }
};

// async: products are wgmma's. Their rings have as many stages as leave room for Tile::kBlocks.
template <class Tile, class A, class B, bool async>
struct MmaShared {
  using T = typename A::Element;
  static constexpr int BK = Tile::template BK<T>;
  struct Stage {
    MmaOperandTile<T, Tile::BM, BK, A::kAlongDepth> a;
    MmaOperandTile<T, Tile::BN, BK, B::kAlongDepth> b;
  };
  // bf16 on its way from or to rows of packs; rows of 16 bytes more: no bank conflicts.
  struct Results {
    alignas(16) bf16 out[Tile::BM][Tile::BN + 8];
    float bias[Tile::BN];
  };
  template <int stages>
  using Ring = Stage[stages];
  static constexpr int kStages = async ? stages_in<Ring>(shared_of(Tile::kBlocks)) : Tile::kStages;
  union {
    Ring<kStages> stages;
    Results results;
  };
};

// Starts to load a tile. What is not packed goes through registers and is there at once.
template <class Loader, class Shared>
__device__ __forceinline__ void fill(Shared& tile, const Loader& loader, int depth) {
  loader.each(depth, [&](int pass, int j, const typename Loader::T* from) {
    typename Loader::T* to = tile.pack(loader.line(pass), loader.point());
    if constexpr (Loader::kPacked)
      ptx::cp_async16(to, from, from ? 16 : 0);
    else
      to[j] = from ? *from : typename Loader::T{};
  });
}

// f(n, m, x, place): for what a thread moves of a block's tile of the output, n neighbours from
// element (m, x) of the tile on, and their place in memory, null outside of the output: packs of 8
// if they fit, else single ones.
template <class Tile, class F>
__device__ __forceinline__ void each_of_tile(const GemmSizes& sizes, const BlockPart<Tile>& place,
                                             const Epilogue<bf16>& epilogue, const F& f) {
  const auto each = [&](auto n, int i) {
    const int m = i / Tile::BN, x = i % Tile::BN, row = place.row + m, column = place.column + x;
    const bool inside = row < sizes.rows && column < sizes.columns;
    f(n, m, x, inside ? epilogue.line(sizes, row) + epilogue.layout.column(column) : nullptr);
  };
  constexpr int kAll = Tile::BM * Tile::BN, kStep = Tile::kThreads * 8;
  static_assert(kAll % kStep == 0 && kStep % Tile::BN == 0);  // a thread has one column
  if (epilogue.packs) {
    TESSERA_UNROLL
    for (int i = 0; i < kAll; i += kStep)
      each(std::integral_constant<int, 8>{}, i + int(threadIdx.x) * 8);
  } else {
    for (int i = int(threadIdx.x); i < kAll; i += Tile::kThreads)
      each(std::integral_constant<int, 1>{}, i);
  }
}

// The block's sums -> memory by way of shared memory.
template <class Tile, class Sums, class Shared>
__device__ __forceinline__ void put_sums(const Sums& sums, Shared& shared, const GemmSizes& sizes,
                                         const BlockPart<Tile>& place,
                                         const Epilogue<bf16>& epilogue) {
  auto& out = shared.results.out;
  auto& bias = shared.results.bias;
  __syncthreads();  // these take the place of what was multiplied
  for (int i = int(threadIdx.x); i < Tile::BN; i += Tile::kThreads)
    bias[i] =
        epilogue.bias && place.column + i < sizes.columns ? epilogue.bias[place.column + i] : 0;
  if (epilogue.accumulate)
    each_of_tile(sizes, place, epilogue, [&](auto n, int m, int x, const bf16* from) {
      (from ? Pack<bf16, n>::load(from) : Pack<bf16, n>{}).store(&out[m][x]);
    });
  __syncthreads();
  sums.each_row([&](int m, int x, auto pairs, const auto& pair) {
    TESSERA_UNROLL
    for (int j = 0; j < pairs; ++j) {
      const auto added = Pack<float, 2>::load(&bias[x + 8 * j]);
      float two[2] = {pair(j)[0] + added[0], pair(j)[1] + added[1]};
      if (epilogue.accumulate) {
        const auto old = Pack<bf16, 2>::load(&out[m][x + 8 * j]);
        two[0] += old[0], two[1] += old[1];
      }
      Pack<bf16, 2>::of(two).store(&out[m][x + 8 * j]);
    }
  });
  __syncthreads();
  each_of_tile(sizes, place, epilogue, [&](auto n, int m, int x, bf16* to) {
    if (to) Pack<bf16, n>::load(&out[m][x]).store(to);
  });
}
// Sums in float a thread writes as it has them: four threads have 32 neighbouring bytes.
template <class Tile, class Sums, class Shared>
__device__ __forceinline__ void put_sums(const Sums& sums, Shared&, const GemmSizes& sizes,
                                         const BlockPart<Tile>& place,
                                         const Epilogue<float>& epilogue) {
  sums.each_row([&](int row, int x, auto pairs, const auto& pair) {
    epilogue.template put<pairs, 2>(sizes, place.row + row, place.column + x,
                                    [&](int j, int i) { return pair(j)[i]; });
  });
}

// Sums of A's rows, by one of the blocks that read the same.
template <class Tile, class Sums>
__device__ __forceinline__ void put_row_sums(const Sums& sums, const GemmSizes& sizes,
                                             const Epilogue<float>& epilogue) {
  const int next = int(blockIdx.x) + 1;
  if (!epilogue.row_sums || next % sizes.column_tiles != 0) return;
  const int first = (next / sizes.column_tiles - 1) * Tile::BM;
  sums.each_sum([&](int i, float sum) {
    if (first + i < sizes.rows)
      put_at(epilogue.row_sums + int64_t(blockIdx.z) * sizes.rows + first + i, sum,
             epilogue.add_row_sums);
  });
}

template <class Tile, class Sums, bool packed, class A, class B, class Out>
__device__ __forceinline__ void gemm_block(const A& a, const B& b, const GemmSizes& sizes,
                                           const Epilogue<Out>& epilogue) {
  using T = typename A::Element;
  using Shared = MmaShared<Tile, A, B, Sums::kAsync>;
  auto& shared = shared_memory<Shared>();
  constexpr int BK = Tile::template BK<T>, kStages = Shared::kStages;
  const BlockPart<Tile> place(sizes);
  const TileLoader<A, Tile::BM, BK, Tile::kThreads, packed> loader_a(a, place.row);
  const TileLoader<B, Tile::BN, BK, Tile::kThreads, packed> loader_b(b, place.column);

  Sums sums;
  multiply_steps<kStages, Sums>(
      0, (place.end - place.depth + BK - 1) / BK,
      [&](int step) {
        auto& stage = shared.stages[step % kStages];
        fill(stage.a, loader_a, place.depth + step * BK);
        fill(stage.b, loader_b, place.depth + step * BK);
      },
      [&](int step) {
        const auto& stage = shared.stages[step % kStages];
        sums.multiply(stage.a, stage.b);
        sums.commit();
      });
  put_sums(sums, shared, sizes, place, epilogue);
  if constexpr (sizeof(T) == 2 && !A::kAlongDepth) put_row_sums<Tile>(sums, sizes, epilogue);
}

// Where 128 registers are enough (what runs across depth in f32 wants more); 0: as the compiler
// likes.
template <class Tile, class A>
inline constexpr int kBlocksWanted = sizeof(typename A::Element) == 2 ||
                                             (Tile::kThreads == 256 && A::kAlongDepth)
                                         ? Tile::kBlocks
                                         : 0;

template <class Tile, class A, class B, class Out, bool packed>
__global__ void __launch_bounds__(Tile::kThreads, kBlocksWanted<Tile, A>)
    gemm_mma_kernel(A a, B b, GemmSizes sizes, Epilogue<Out> epilogue) {
  ptx::begin_kernel();
  using T = typename A::Element;
  if constexpr (sizeof(T) == 2)
    if (ptx::has_wgmma())
      return gemm_block<Tile, GroupProducts<Tile, A::kAlongDepth>, packed>(a, b, sizes, epilogue);
  gemm_block<Tile, WarpProducts<Tile, T>, packed>(a, b, sizes, epilogue);
}

}  // namespace tessera::TESSERA_CUDA::gemm
