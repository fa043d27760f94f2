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
inline constexpr int kTilePixels = 8;  // of a thread, at most

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

// Fewer pixels to a tile where a GPU would have too few blocks otherwise.
inline Tiling tiling_of(Stream& stream, int64_t N, int64_t P, int64_t C, int V) {
  Tiling t{N, P, int(C), int(C / V)};
  if (t.empty()) return t;
  t.cols = int(ceil_div(t.packs, ceil_div(t.packs, kTileCols)));
  t.rows = kTileThreads / t.cols;
  const int64_t wanted = 2 * stream.device().info().multiprocessors;
  for (int pixels = kTilePixels; pixels > 0; pixels /= 2) {
    t.pixels = t.rows * pixels;
    t.slices = int(ceil_div(P, t.pixels));
    if (N * t.slices * ceil_div(t.packs, t.cols) >= wanted) break;
  }
  t.by_cols = Divisor32(t.cols), t.by_rows = Divisor32(t.rows), t.by_slices = Divisor32(t.slices);
  return t;
}

// Calls f(zero of the storage type, pack size constant) for the storage of x [N,H,W,C] and the
// widest packs that all addresses allow.
template <class F, class... Tensors>
void with_packs(const Tensor& x, F&& f, const Tensors&... others) {
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    if (packs_fit<T, kPack<T>>(x.dim(3), x.raw(), (others ? others.raw() : nullptr)...))
      return f(zero, std::integral_constant<int, kPack<T>>{});
    f(zero, std::integral_constant<int, 1>{});
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

template <int V>
struct ColumnScratch {
  float values[V][kTileThreads];
};

// Sums over the rows of a tile; every thread gets the sums of its column. All threads must come,
// also those past the last whole row.
template <int V>
__device__ __forceinline__ void column_sums(float (&values)[V], int cols, int rows,
                                            ColumnScratch<V>& scratch) {
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

template <class T, class Put>
__global__ void sum_rows_kernel(unsigned outer, int64_t rows, int64_t count, int inner, int cols,
                                const T* x, Put put) {
  auto& scratch = shared_memory<ColumnScratch<1>>();
  const int step = kTileThreads / cols, row = int(threadIdx.x) / cols;
  const int i = int(blockIdx.x / outer) * cols + int(threadIdx.x) % cols;
  const int64_t o = blockIdx.x % outer, end = (o + 1) * count < rows ? (o + 1) * count : rows;
  float sum[1] = {};
  if (i < inner)
    for (int64_t r = o * count + row; r < end; r += step) sum[0] += to_float(x[r * inner + i]);
  column_sums(sum, cols, step, scratch);
  if (row == 0 && i < inner) put(o, i, sum[0]);
}

// Sums of x [rows,inner] over `count` rows each, the last ones over what is left of them, outer in
// all: put(o, i, sum). put is a struct with a __device__ operator()(int64_t o, int i, float sum).
template <class T, class Put>
void sum_rows(Stream& stream, int64_t outer, int64_t rows, int64_t count, int64_t inner, const T* x,
              const Put& put) {
  if (outer * inner == 0) return;
  const int cols = int(std::min<int64_t>(inner, kTileCols));
  const int64_t blocks = outer * ceil_div(inner, cols);
  ENSURE(blocks <= INT32_MAX, "sums of ", rows, " rows of ", inner, ", ", count, " each");
  launch<sum_rows_kernel<T, Put>>(
      {cuda_stream(stream), dim3(unsigned(blocks)), dim3(kTileThreads), sizeof(ColumnScratch<1>)},
      unsigned(outer), rows, count, int(inner), cols, x, put);
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
