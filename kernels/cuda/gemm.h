// What the mainloops of matrix products share (gemm_simt.h, gemm_mma.h): how the threads of a block
// divide the loading of a tile, and where results go.
#pragma once

#include "kernels/cuda/index.h"

namespace tessera::TESSERA_CUDA::gemm {

// D [rows, columns] = sum over depth. A block has one tile of D and one part of the depth.
struct GemmSizes {
  int rows, columns, depth;
  int column_tiles;
  int depth_per_split;  // a multiple of every BK
};

// Where a block's tile begins, and its part of the depth. Blocks that follow each other have the
// same rows: these are read from memory once, the columns (filters) stay in the cache.
template <class Tile>
struct BlockPart {
  int row, column, depth, end;
  __device__ __forceinline__ explicit BlockPart(const GemmSizes& sizes)
      : row(int(blockIdx.x) / sizes.column_tiles * Tile::BM),
        column(int(blockIdx.x) % sizes.column_tiles * Tile::BN),
        depth(int(blockIdx.z) * sizes.depth_per_split),
        end(min(sizes.depth, depth + sizes.depth_per_split)) {}
};

// One operand's part of a step: BX outer indices by BK of depth, moved in packs of V elements that
// are neighbours in memory. A tile has lines (memory runs along them); consecutive threads take
// consecutive packs of a line, then of the next one, and after kPasses passes all is loaded.
// packed: a pack is inside or outside as a whole and its address is aligned, so it is moved as one.
template <class Operand, int BX, int BK, int Threads, bool packed>
class TileLoader {
 public:
  using T = typename Operand::Element;
  static constexpr bool kAlongDepth = Operand::kAlongDepth;
  static constexpr bool kPacked = packed;
  static constexpr int V = kPack<T>;
  static constexpr int kPacksPerLine = (kAlongDepth ? BK : BX) / V;
  static constexpr int kLinesPerPass = Threads / kPacksPerLine;
  static constexpr int kPasses = (kAlongDepth ? BX : BK) / kLinesPerPass;
  static_assert(Threads % kPacksPerLine == 0 &&
                kLinesPerPass * kPasses * kPacksPerLine * V == BX * BK);

  __device__ __forceinline__ TileLoader(const Operand& operand, int first_outer)
      : operand_(operand),
        line_(int(threadIdx.x) / kPacksPerLine),
        point_(int(threadIdx.x) % kPacksPerLine * V) {
    TESSERA_UNROLL
    for (int i = 0; i < kOuters; ++i)
      outers_[i] = operand.outer(first_outer + (kAlongDepth ? line(i) : point_ + i));
  }

  // Where in the tile this thread's pack of a pass begins.
  __device__ __forceinline__ int line(int pass) const { return line_ + pass * kLinesPerPass; }
  __device__ __forceinline__ int point() const { return point_; }

  // Calls take(pass, j, address) for this thread's packs of the tile that begins at `depth`, or
  // for each element j of them when they are not packed; null: zeros.
  template <class Take>
  __device__ __forceinline__ void each(int depth, const Take& take) const {
    TESSERA_UNROLL
    for (int j = 0; j < kDepths; ++j) {
      const auto position = operand_.depth(depth + (kAlongDepth ? point_ + j : line(j)));
      TESSERA_UNROLL
      for (int i = 0; i < kOuters; ++i) {
        const T* from = operand_.at(outers_[i], position);
        if constexpr (kAlongDepth)
          take(i, j, from);
        else
          take(j, i, from);
      }
    }
  }

 private:
  // Indices along outer and along depth that a thread deals with: one side is that of the passes,
  // the other that of a pack's elements.
  static constexpr int kPerPack = packed ? 1 : V;
  static constexpr int kOuters = kAlongDepth ? kPasses : kPerPack;
  static constexpr int kDepths = kAlongDepth ? kPerPack : kPasses;

  const Operand& operand_;
  int line_, point_;
  typename Operand::Outer outers_[kOuters];
};

// Where D's elements lie: rows `stride` apart, and every so many rows and columns a gap. Without
// gaps a matrix; with them patches of an image (conv2d_bwd_data.cu).
struct ResultLayout {
  int64_t stride;
  Divisor32 rows{1 << 30}, columns{1 << 30};
  int64_t row_gap = 0, column_gap = 0;

  // An element is at row(its row) + column(its column).
  __device__ __forceinline__ int64_t row(int i) const {
    return i * stride + rows.quotient(i) * row_gap;
  }
  __device__ __forceinline__ int64_t column(int i) const {
    return i + columns.quotient(i) * column_gap;
  }
};

// Writes D with a bias, or adds it: one result, or one per part of the depth, which follow each
// other.
template <class Out>
struct Epilogue {
  Out* out;
  const float* bias;  // [columns] or null; not where D is added
  bool accumulate;
  ResultLayout layout;
  bool packs = false;  // kPack<Out> neighbours can be written as one, 4 floats of the bias read
  // [parts of the depth, rows] or null: where the sums of A's rows go, or are added
  // (products.h, each_sum).
  float* row_sums = nullptr;
  bool add_row_sums = false;

  // A row of the block's part of the depth.
  __device__ __forceinline__ Out* line(const GemmSizes& sizes, int row) const {
    return out + int64_t(blockIdx.z) * sizes.rows * layout.stride + layout.row(row);
  }
  // n times V neighbouring columns, 8 apart: value(j, i) for column + 8 j + i.
  template <int n, int V, class Value>
  __device__ __forceinline__ void put(const GemmSizes& sizes, int row, int column,
                                      const Value& value) const {
    if (row >= sizes.rows) return;
    Out* const to = line(sizes, row);
    if (layout.column_gap)
      put_columns<n, V>(sizes, column, value, [&](int x) { return to + layout.column(x); });
    else  // x - column is a constant, and so is the distance
      put_columns<n, V>(sizes, column, value, [&](int x) { return to + column + (x - column); });
  }

 private:
  // at(x): where column x lies. What is added is read before anything is written: the reads are on
  // their way together.
  template <int n, int V, class Value, class At>
  __device__ __forceinline__ void put_columns(const GemmSizes& sizes, int column,
                                              const Value& value, const At& at) const {
    float added[n][V] = {};
    if (bias) {
      TESSERA_UNROLL
      for (int j = 0; j < n; ++j)
        read(added[j], sizes, column + 8 * j, [&](int x) { return bias + x; });
    } else if (accumulate) {
      TESSERA_UNROLL
      for (int j = 0; j < n; ++j) read(added[j], sizes, column + 8 * j, at);
    }
    TESSERA_UNROLL
    for (int j = 0; j < n; ++j) {
      const int first = column + 8 * j;
      float results[V];
      TESSERA_UNROLL
      for (int i = 0; i < V; ++i) results[i] = value(j, i) + added[j][i];
      if (packs && first < sizes.columns) Pack<Out, V>::of(results).store(at(first));
      TESSERA_UNROLL
      for (int i = 0; i < V; ++i)
        if (!packs && first + i < sizes.columns) *at(first + i) = from_float<Out>(results[i]);
    }
  }
  // values = what V columns have, those that there are.
  template <int V, class At>
  __device__ __forceinline__ void read(float (&values)[V], const GemmSizes& sizes, int column,
                                       const At& at) const {
    using T = std::remove_cvref_t<decltype(*at(0))>;
    if (packs && column < sizes.columns) {
      const auto pack = Pack<T, V>::load(at(column));
      TESSERA_UNROLL
      for (int i = 0; i < V; ++i) values[i] = pack[i];
    }
    TESSERA_UNROLL
    for (int i = 0; i < V; ++i)
      if (!packs && column + i < sizes.columns) values[i] = to_float(*at(column + i));
  }
};

}  // namespace tessera::TESSERA_CUDA::gemm
