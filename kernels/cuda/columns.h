// Work split of kernels on [N,P,C] (P pixels, C channels next to each other) in which a thread
// keeps to its channels: sums over pixels, and maps with a value per channel. The tensor is cut
// into tiles of neighbouring pixels of one image by neighbouring packs of V channels, a block each.
// Thread (row, col) of a tile has the pack `col` of its pixels row, row + rows, and so on.
//
// Sums have two stages, both in a fixed order: over the pixels of a tile (column_sums), then over
// the tiles of an image (sum_rows).
#pragma once

#include <algorithm>

#include "kernels/cuda/index.h"

namespace tessera::TESSERA_CUDA {

inline constexpr int kTileThreads = 256;
inline constexpr int kTileCols = 32;   // at most: rows of 512 bytes are long enough
inline constexpr int kTilePixels = 8;  // of a thread that has all of them in registers, at most
inline constexpr int kTileLoop = 16;   // of one that goes from pixel to pixel

struct Tiling {
  int64_t N, P;
  int C, packs;            // packs of a pixel
  int cols = 0, rows = 0;  // packs and pixels that a block has at a time
  int pixels = 0;          // of a tile
  int slices = 0;          // tiles of the pixels of an image
  Divisor32 by_cols{1}, by_rows{1}, by_slices{1};

  dim3 grid() const { return {unsigned(N * slices), unsigned(ceil_div(packs, cols))}; }
  bool empty() const { return N * P * C == 0; }
};

// Of x [N,H,W,C]. `resident`: how many blocks of the kernel a multiprocessor holds at a time;
// `longest`: pixels of a thread, at most. Tiles are as long as they may be for the GPU to be done
// soonest: its last wave of blocks takes as long as a full one, and a block has to begin and end,
// which takes as long as some two pixels.
inline Tiling tiling_of(Stream& stream, const Tensor& x, int V, int resident, int longest) {
  const int64_t N = x.dim(0), P = x.dim(1) * x.dim(2), C = x.dim(3);
  ENSURE(C <= INT32_MAX, "tiles of ", x.shape());
  Tiling t{N, P, int(C), int(C / V)};
  if (t.empty()) return t;
  t.cols = int(ceil_div(t.packs, ceil_div(t.packs, kTileCols)));
  t.rows = kTileThreads / t.cols;
  const int64_t wave = int64_t(resident) * stream.device().info().multiprocessors;
  int64_t least = INT64_MAX;
  for (int pixels = 1; pixels <= longest; ++pixels) {
    const int64_t slices = ceil_div(P, t.rows * pixels);
    const int64_t waves = ceil_div(N * slices * ceil_div(t.packs, t.cols), wave);
    const int64_t time = waves * (pixels + 2);
    if (time > least) continue;
    least = time, t.pixels = t.rows * pixels, t.slices = int(slices);
  }
  ENSURE(N * t.slices <= INT32_MAX && t.grid().y <= 65535, "tiles of ", x.shape());
  t.by_cols = Divisor32(t.cols), t.by_rows = Divisor32(t.rows), t.by_slices = Divisor32(t.slices);
  return t;
}

// Calls f(zero of the storage type, pack size constant) for the storage of x [N,H,W,C] and the
// widest packs that all addresses allow.
template <class F, class... Tensors>
void with_packs(const Tensor& x, F&& f, const Tensors&... others) {
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const bool fit =
        packs_fit<T, kPack<T>>(x.dim(3), x.raw(), (others ? others.raw() : nullptr)...);
    with_pack<kPack<T>>(fit, [&](auto pack) { f(zero, pack); });
  });
}

// The part of a thread; threads that have none have a count of 0.
template <int V>
struct Tile {
  int64_t n;              // image
  int slice, length;      // tile of the image, and its pixels
  int row, col, channel;  // channel: first of V
  bool has_channel;
  int count;            // pixels
  int64_t first, step;  // elements to the thread's first pixel, and from there to its next one

  __device__ __forceinline__ explicit Tile(const Tiling& t) {
    int image = int(blockIdx.x);
    slice = t.by_slices.divide(image);
    n = image;
    row = int(threadIdx.x);
    col = t.by_cols.divide(row);
    channel = (int(blockIdx.y) * t.cols + col) * V;
    has_channel = channel < t.C;
    const int64_t begin = int64_t(slice) * t.pixels;
    length = int(t.P - begin < t.pixels ? t.P - begin : t.pixels);
    const bool has_pixels = has_channel && row < t.rows && row < length;
    count = has_pixels ? t.by_rows.quotient(length - row - 1) + 1 : 0;
    first = (n * t.P + begin + row) * t.C + channel;
    step = int64_t(t.rows) * t.C;
  }

  // The thread's pixel number k; zeros where it has none.
  template <class T>
  __device__ __forceinline__ Pack<T, V> load(const T* x, int k) const {
    return k < count ? Pack<T, V>::load(x + first + k * step) : Pack<T, V>{};
  }
};

template <int V, int kThreads = kTileThreads>
struct ColumnScratch {
  float values[V][kThreads];
};

// Sums over the rows of a tile; every thread gets the sums of its column. All threads must come,
// also those past the last whole row.
template <int V, int kThreads>
__device__ __forceinline__ void column_sums(float (&values)[V], int cols, int rows,
                                            ColumnScratch<V, kThreads>& scratch) {
  const int row = int(threadIdx.x) / cols;
  int half = 1;
  while (2 * half < rows) half *= 2;
  for (; half > 0; half /= 2) {
    if (row >= half && row < 2 * half)
      for (int j = 0; j < V; ++j) scratch.values[j][threadIdx.x] = values[j];
    __syncthreads();
    if (row + half < rows)
      for (int j = 0; j < V; ++j) values[j] += scratch.values[j][threadIdx.x + half * cols];
  }
  if (row == 0)
    for (int j = 0; j < V; ++j) scratch.values[j][threadIdx.x] = values[j];
  __syncthreads();
  for (int j = 0; j < V; ++j) values[j] = scratch.values[j][int(threadIdx.x) % cols];
}

// Sums of x [rows,inner] over `count` rows each, the last ones over what is left of them, outer in
// all. A block adds up `cols` packs of V columns.
template <class T, int V>
struct RowSums {
  int64_t outer, rows, count;
  int inner, cols;
  const T* x;

  RowSums(int64_t outer, int64_t rows, int64_t count, int64_t inner, const T* x)
      : outer(outer),
        rows(rows),
        count(count),
        inner(int(inner)),
        cols(int(std::min<int64_t>(inner / V, kTileCols))),
        x(x) {}
  // Fits a grid.
  unsigned blocks() const {
    const int64_t needed = cols ? outer * ceil_div(inner / V, cols) : 0;
    ENSURE(needed <= INT32_MAX, "sums of ", rows, " rows of ", inner, ", ", count, " each");
    return unsigned(needed);
  }

  // put(o, i, sum) for all i of a block, of whose threads all must come.
  template <class Put>
  __device__ __forceinline__ void block(unsigned number, ColumnScratch<V>& scratch,
                                        const Put& put) const {
    const int step = kTileThreads / cols, row = int(threadIdx.x) / cols;
    const int64_t o = number % unsigned(outer),
                  end = (o + 1) * count < rows ? (o + 1) * count : rows;
    const int i = (int(number / unsigned(outer)) * cols + int(threadIdx.x) % cols) * V;
    float sums[V] = {};
    if (i < inner)
      for (int64_t r = o * count + row; r < end; r += step) {
        const auto values = Pack<T, V>::load(x + r * inner + i);
        for (int j = 0; j < V; ++j) sums[j] += values[j];
      }
    column_sums(sums, cols, step, scratch);
    if (row != 0 || i >= inner) return;
    for (int j = 0; j < V; ++j) put(o, i + j, sums[j]);
  }
};

template <class T, int V, class Put>
__global__ void __launch_bounds__(kTileThreads) sum_rows_kernel(RowSums<T, V> sums, Put put) {
  ptx::begin_kernel();
  sums.block(blockIdx.x, shared_memory<ColumnScratch<V>>(), put);
}

// put(o, i, sum) of all of RowSums. put is a struct with a
// __device__ operator()(int64_t o, int i, float sum).
template <class T, int V, class Put>
void sum_rows(Stream& stream, const RowSums<T, V>& sums, const Put& put) {
  if (const unsigned blocks = sums.blocks())
    launch_next<sum_rows_kernel<T, V, Put>>(
        {cuda_stream(stream), dim3(blocks), dim3(kTileThreads), sizeof(ColumnScratch<V>)}, sums,
        put);
}
template <class T, class Put>
void sum_rows(Stream& stream, int64_t outer, int64_t rows, int64_t count, int64_t inner, const T* x,
              const Put& put) {
  with_pack<kPack<T>>(packs_fit<T, kPack<T>>(inner, x), [&](auto V) {
    sum_rows(stream, RowSums<T, V>(outer, rows, count, inner, x), put);
  });
}

// y [outer,inner] = or += the sums.
template <class T>
struct PutSum {
  T* y;
  bool accumulate;
  int64_t inner;
  __device__ void operator()(int64_t o, int i, float sum) const {
    put_at(y + o * inner + i, sum, accumulate);
  }
};

}  // namespace tessera::TESSERA_CUDA
