// Convolutions between one channel and many (conv_thin.h): `one` [N,H,W], `many` [N,P,Q,K], and a
// filter f [K,R,R] whose tap (r,s) joins pixel (p,q) of many to (p+r-pad_h, q+s-pad_w) of one.
//   one_to_many   many = b + sum over taps of one f     fwd from one channel, bwd_data to one
//   thin_wgrad    df = sum over pixels of many one      bwd_weight of both
//   many_to_one   one = b + sum over k of many f, 1x1   fwd to one channel
// All read or write `many` once, in packs; everything else is small. The first two cut it into
// tiles of kRows x kColumns pixels by kPacks packs. A thread has a pack, whose filters or their
// sums are in its registers, and a column of a tile, along which it keeps the taps' pixels of one.
#include "kernels/cuda/conv_thin.h"

#include "kernels/cuda/sum_parts.h"

namespace tessera::TESSERA_CUDA::conv {
namespace {

constexpr int kPacks = 8, kColumns = 32, kThreads = kPacks * kColumns;
constexpr int kRows = 8;
[[maybe_unused]] constexpr int kBlocks = 2;  // to fit a multiprocessor
constexpr int64_t kParts = 256;  // of the pixels: enough blocks for a large GPU, the same on all
constexpr int kAhead = 4;        // loads on their way, of a thread

struct ThinSizes {
  int H, W, P, Q, K, pad_h, pad_w;
  int across, down, slices;  // tiles of an image, slices of kPacks packs of V
  int tiles;                 // of all images
  Divisor32 by_across, by_down, by_slices;

  // K: channels of many.
  ThinSizes(const Sizes& s, int K, int V)
      : H(s.H),
        W(s.W),
        P(s.P),
        Q(s.Q),
        K(K),
        pad_h(s.pad_h),
        pad_w(s.pad_w),
        across(int(ceil_div(Q, kColumns))),
        down(int(ceil_div(P, kRows))),
        slices(int(ceil_div(K, kPacks * V))),
        tiles(s.y_pixels / (P * Q) * down * across),
        by_across(across),
        by_down(down),
        by_slices(slices) {}
  // Blocks: parts of the pixels, by slices.
  dim3 grid(int64_t parts) const {
    ENSURE(parts * slices <= INT32_MAX, "conv2d: ", parts, " parts of ", K, " channels");
    return dim3(unsigned(parts * slices));
  }
  // The first pixel of a tile.
  __device__ __forceinline__ Place tile(int i) const {
    const int column = by_across.divide(i), row = by_down.divide(i);
    return {i, row * kRows, column * kColumns};
  }
};

// The pixels of `one` that a tile meets.
template <int R>
struct ThinHalo {
  static constexpr int kHeight = kRows + R - 1, kWidth = kColumns + R - 1;
  float pixels[kHeight][kWidth];

  template <class T>
  __device__ __forceinline__ void fill(const ThinSizes& s, const Place& tile, const T* one) {
    for (int i = int(threadIdx.x); i < kHeight * kWidth; i += kThreads) {
      const int row = i / kWidth, column = i % kWidth;
      const int h = tile.h + row - s.pad_h, w = tile.w + column - s.pad_w;
      const bool inside = h >= 0 && h < s.H && w >= 0 && w < s.W;
      pixels[row][column] = inside ? to_float(one[(tile.n * s.H + h) * s.W + w]) : 0.0f;
    }
  }
};

// What a thread sees of it below its column: the pixels of the taps of row i, for i = 0, 1, ...
template <int R>
struct ThinWindow {
  float pixels[R][R];  // rows of the halo (mod R)

  __device__ __forceinline__ void move_to(int i, const ThinHalo<R>& halo, int column) {
    TESSERA_UNROLL
    for (int r = i == 0 ? 0 : R - 1; r < R; ++r) {
      TESSERA_UNROLL
      for (int s = 0; s < R; ++s) pixels[(i + r) % R][s] = halo.pixels[i + r][column + s];
    }
  }
  __device__ __forceinline__ float at(int i, int r, int s) const { return pixels[(i + r) % R][s]; }
};

// The part of a thread: V channels from k on, of a column of a tile.
template <int V>
struct ThinThread {
  int pack = int(threadIdx.x) % kPacks, column = int(threadIdx.x) / kPacks, first_k, k;

  __device__ __forceinline__ explicit ThinThread(int slice)
      : first_k(slice * kPacks * V), k(first_k + pack * V) {}
  // Its pixels, from the first one on.
  __device__ __forceinline__ int count(const ThinSizes& s, const Place& tile) const {
    return k < s.K && tile.w + column < s.Q ? min(kRows, s.P - tile.h) : 0;
  }
  __device__ __forceinline__ int64_t at(const ThinSizes& s, const Place& tile) const {
    return int64_t((tile.n * s.P + tile.h) * s.Q + tile.w + column) * s.K + k;
  }
};

// Shared memory for a number of each channel of a slice: rows that are read across begin in other
// banks.
template <int V>
struct alignas(32) ThinRow {
  float values[kPacks * V + 8];

  __device__ __forceinline__ Pack<float, V> pack(int i) const {
    return Pack<float, V>::load(&values[i * V]);
  }
};

// ---- One to many

template <int V, int R>
struct OneToManyShared {
  ThinHalo<R> halo;
  ThinRow<V> filters[R * R];
};

// many = or += b + sums; b may be null.
template <class T, int V, int R>
__global__ void __launch_bounds__(kThreads, kBlocks)
    one_to_many_kernel(ThinSizes s, const T* one, const T* f, const float* b, T* many,
                       bool accumulate) {
  ptx::begin_kernel();
  auto& shared = shared_memory<OneToManyShared<V, R>>();
  int block = int(blockIdx.x);
  const ThinThread<V> mine(s.by_slices.divide(block));
  const Place tile = s.tile(block);
  for (int i = int(threadIdx.x); i < kPacks * V * R * R; i += kThreads) {
    const int j = mine.first_k * R * R + i;
    shared.filters[i % (R * R)].values[i / (R * R)] = j < s.K * R * R ? to_float(f[j]) : 0.0f;
  }
  shared.halo.fill(s, tile, one);
  __syncthreads();
  const int count = mine.count(s, tile);
  if (count == 0) return;

  Pack<float, V> filters[R * R];
  for (int tap = 0; tap < R * R; ++tap) filters[tap] = shared.filters[tap].pack(mine.pack);
  float bias[V] = {};
  if (b)
    for (int j = 0; j < V; ++j) bias[j] = b[mine.k + j];
  T* const to = many + mine.at(s, tile);
  ThinWindow<R> x;
  TESSERA_UNROLL
  for (int i = 0; i < kRows; ++i) {
    if (i >= count) break;
    x.move_to(i, shared.halo, mine.column);
    T* const pixel = to + i * int64_t(s.Q) * s.K;
    Pack<T, V> old{};
    if (accumulate) old = Pack<T, V>::load(pixel);
    float sums[V];
    for (int j = 0; j < V; ++j) sums[j] = bias[j];
    TESSERA_UNROLL
    for (int tap = 0; tap < R * R; ++tap)
      for (int j = 0; j < V; ++j) sums[j] += x.at(i, tap / R, tap % R) * filters[tap][j];
    if (accumulate)
      for (int j = 0; j < V; ++j) sums[j] += old[j];
    Pack<T, V>::of(sums).store(pixel);
  }
}

// ---- The filter's gradient

// Where a part's sums go: df [parts,K,R,R], db [parts,biases] or null.
struct ThinGrads {
  float *df, *db;
  int biases;
  bool bias_of_one;  // db sums `one`, of 1x1 filters, else `many`
  bool add_df, add_db;
};

// The sums of a thread, then of its block: those of the taps and, in the last row, of the bias.
template <int V, int R>
struct ThinSums {
  static constexpr int kTaps = R * R, kLanes = 2 * kPacks, kGroups = kThreads / kLanes;
  struct Shared {
    ThinHalo<R> halo;
    ThinRow<V> groups[kGroups][kTaps + 1];
  };
  float sums[kTaps + 1][V] = {};

  template <class T>
  __device__ __forceinline__ void add(const Pack<T, V>& many, const ThinWindow<R>& x, int i,
                                      bool bias_of_one) {
    TESSERA_UNROLL
    for (int tap = 0; tap < kTaps; ++tap)
      for (int j = 0; j < V; ++j) sums[tap][j] += x.at(i, tap / R, tap % R) * many[j];
    if (R == 1 && bias_of_one)
      sums[kTaps][0] += x.at(i, 0, 0);
    else
      for (int j = 0; j < V; ++j) sums[kTaps][j] += many[j];
  }
  // Over groups of kLanes lanes, then over the groups.
  __device__ __forceinline__ void put(const ThinSizes& s, const ThinThread<V>& mine, int part,
                                      Shared& shared, const ThinGrads& to) {
    const int group = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
    TESSERA_UNROLL
    for (int row = 0; row <= kTaps; ++row) {
      for (int j = 0; j < V; ++j) sums[row][j] += __shfl_xor_sync(0xFFFFFFFF, sums[row][j], kPacks);
      if (lane < kPacks)
        Pack<float, V>::of(sums[row]).store(&shared.groups[group][row].values[mine.pack * V]);
    }
    __syncthreads();
    const auto total = [&](int row, int k) {
      float sum = shared.groups[0][row].values[k];
      for (int g = 1; g < kGroups; ++g) sum += shared.groups[g][row].values[k];
      return sum;
    };
    const int64_t size = int64_t(s.K) * kTaps, first = int64_t(mine.first_k) * kTaps;
    for (int i = int(threadIdx.x); i < kPacks * V * kTaps && first + i < size; i += kThreads)
      put_at(to.df + part * size + first + i, total(i % kTaps, i / kTaps), to.add_df);
    const int k = int(threadIdx.x), biases = to.db ? to.biases : 0;
    if (k < kPacks * V && mine.first_k + k < biases)
      put_at(to.db + int64_t(part) * biases + mine.first_k + k, total(kTaps, k), to.add_db);
  }
};

template <class T, int V, int R>
__global__ void __launch_bounds__(kThreads, kBlocks)
    thin_wgrad_kernel(ThinSizes s, int tiles_per_part, const T* one, const T* many, ThinGrads to) {
  ptx::begin_kernel();
  auto& shared = shared_memory<typename ThinSums<V, R>::Shared>();
  int part = int(blockIdx.x);
  const ThinThread<V> mine(s.by_slices.divide(part));
  const int first = part * tiles_per_part, end = min(first + tiles_per_part, s.tiles);
  ThinSums<V, R> sums;
  for (int t = first; t < end; ++t) {
    const Place tile = s.tile(t);
    const int count = mine.count(s, tile);
    const T* const from = many + mine.at(s, tile);
    const auto load = [&](int i) {
      return i < count ? Pack<T, V>::load(from + i * int64_t(s.Q) * s.K) : Pack<T, V>{};
    };
    Pack<T, V> ahead[kAhead];
    for (int i = 0; i < kAhead; ++i) ahead[i] = load(i);
    __syncthreads();  // nobody reads the previous tile any more
    shared.halo.fill(s, tile, one);
    __syncthreads();
    ThinWindow<R> x;
    TESSERA_UNROLL
    for (int i = 0; i < kRows; ++i) {
      // A pixel that is not there must not meet one that is, perhaps a NaN.
      if (i >= count) break;
      const Pack<T, V> pixel = ahead[i % kAhead];
      if (i + kAhead < kRows) ahead[i % kAhead] = load(i + kAhead);
      x.move_to(i, shared.halo, mine.column);
      sums.add(pixel, x, i, to.bias_of_one);
    }
  }
  sums.put(s, mine, part, shared, to);
}

// ---- Many to one, 1x1

constexpr int kPixels = 8;  // of a thread, its loads on their way

// Each pixel belongs to `lanes` neighbouring lanes, a power of two.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    many_to_one_kernel(int pixels, int K, int lanes, const T* many, const T* f, const float* b,
                       T* one) {
  ptx::begin_kernel();
  const int lane = int(threadIdx.x) % lanes, step = kThreads / lanes;
  const int first = int(blockIdx.x) * step * kPixels + int(threadIdx.x) / lanes;
  float sums[kPixels] = {};
  for (int k = lane * V; k < K; k += lanes * V) {
    const auto filter = Pack<T, V>::load(f + k);
    Pack<T, V> packs[kPixels];
    for (int i = 0; i < kPixels; ++i) {
      const int pixel = first + i * step;
      packs[i] = pixel < pixels ? Pack<T, V>::load(many + int64_t(pixel) * K + k) : Pack<T, V>{};
    }
    for (int i = 0; i < kPixels; ++i)
      for (int j = 0; j < V; ++j) sums[i] += packs[i][j] * filter[j];
  }
  const float bias = b ? *b : 0.0f;
  for (int i = 0; i < kPixels; ++i) {
    for (int apart = lanes / 2; apart > 0; apart /= 2)
      sums[i] += __shfl_xor_sync(0xFFFFFFFF, sums[i], apart);
    const int pixel = first + i * step;
    if (lane == 0 && pixel < pixels) one[pixel] = from_float<T>(sums[i] + bias);
  }
}

// ---- Launches

// Calls f(pack size constant, side of the filter: 1 or 3) for K channels of many.
template <class T, class F>
void with_thin_tile(const Sizes& s, int K, const T* many, const F& f) {
  with_pack<kPack<T>>(packs_fit<T, kPack<T>>(K, many), [&](auto V) {
    s.R == 1 ? f(V, std::integral_constant<int, 1>{}) : f(V, std::integral_constant<int, 3>{});
  });
}

template <class T>
void run_one_to_many(Stream& stream, const Sizes& s, int K, const T* one, const T* f,
                     const float* b, T* many, GradMode mode) {
  with_thin_tile<T>(s, K, many, [&](auto V, auto R) {
    const ThinSizes sizes(s, K, V);
    launch_next<one_to_many_kernel<T, V, R>>({cuda_stream(stream), sizes.grid(sizes.tiles),
                                              dim3(kThreads), sizeof(OneToManyShared<V, R>)},
                                             sizes, one, f, b, many, mode == GradMode::Accumulate);
  });
}

template <class T>
void run_many_to_one(Stream& stream, const Sizes& s, const T* many, const T* f, const float* b,
                     T* one) {
  with_pack<kPack<T>>(packs_fit<T, kPack<T>>(s.C, many, f), [&](auto V) {
    const int lanes = int(std::bit_ceil(unsigned(std::min(32, s.C / V))));
    const int64_t blocks = ceil_div(s.y_pixels, kThreads / lanes * kPixels);
    launch_next<many_to_one_kernel<T, V>>(
        {cuda_stream(stream), dim3(unsigned(blocks)), dim3(kThreads)}, s.y_pixels, s.C, lanes, many,
        f, b, one);
  });
}

// one_is_dy: or else many is.
template <class T>
void run_thin_wgrad(Stream& stream, const Sizes& s, int K, const T* one, const T* many,
                    bool one_is_dy, Grad dw, Grad db) {
  const int biases = one_is_dy ? 1 : K;
  with_thin_tile<T>(s, K, many, [&](auto V, auto R) {
    const ThinSizes sizes(s, K, V);
    const int per_part = int(ceil_div(sizes.tiles, ceil_div(kParts, sizes.slices)));
    const int64_t parts = ceil_div(sizes.tiles, per_part);
    const auto start = [&](const ThinGrads& to) {
      launch_next<thin_wgrad_kernel<T, V, R>>(
          {cuda_stream(stream), sizes.grid(parts), dim3(kThreads),
           sizeof(typename ThinSums<V, R>::Shared)},
          sizes, per_part, one, many, to);
    };
    if (parts == 1)  // is the result; more are added in order
      return start({dw.tensor.data<float>(), data_or_null<float>(db.tensor), biases, one_is_dy,
                    dw.mode == GradMode::Accumulate, db.mode == GradMode::Accumulate});
    Tensor sums = Tensor::empty(stream, {parts, K, R * R}), bias_sums;
    if (db) bias_sums = Tensor::empty(stream, {parts, biases});
    start({sums.data<float>(), data_or_null<float>(bias_sums), biases, one_is_dy, false, false});
    sum_parts(stream, parts_of(sums, dw), parts_of(bias_sums, db));
  });
}

}  // namespace

void thin_fwd(Stream& stream, const Sizes& s, const Tensor& x, const Tensor& w, const Tensor& b,
              Tensor& y) {
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T *in = x.data<T>(), *f = w.data<T>();
    const float* bias = data_or_null<float>(b);
    if (is_from_one(s))
      return run_one_to_many(stream, s, s.K, in, f, bias, y.data<T>(), GradMode::Overwrite);
    run_many_to_one(stream, s, in, f, bias, y.data<T>());
  });
}

void thin_bwd_data(Stream& stream, const Sizes& s, const Tensor& dy, const Tensor& w, Grad dx) {
  with_storage(dy.dtype(), [&](auto zero) {
    using T = decltype(zero);
    run_one_to_many<T>(stream, s, s.C, dy.data<T>(), w.data<T>(), nullptr, dx.tensor.data<T>(),
                       dx.mode);
  });
}

void thin_bwd_weight(Stream& stream, const Sizes& s, const Tensor& x, const Tensor& dy, Grad dw,
                     Grad db) {
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T *in = x.data<T>(), *up = dy.data<T>();
    is_from_one(s) ? run_thin_wgrad(stream, s, s.K, in, up, false, dw, db)
                   : run_thin_wgrad(stream, s, s.C, up, in, true, dw, db);
  });
}

}  // namespace tessera::TESSERA_CUDA::conv
