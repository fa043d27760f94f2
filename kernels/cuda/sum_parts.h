// Sums that blocks left as parts: the second half of every sum whose depth is split. Neighbouring
// threads add neighbouring outputs; where these are too few to keep a large GPU busy, the parts are
// cut into ranges, a thread each, whose sums are added in their order.
#pragma once

#include "kernels/cuda/index.h"

namespace tessera::TESSERA_CUDA {

inline constexpr int kSumThreads = 256;
inline constexpr int kPartsAtOnce = 4;  // loads of a thread that are under way together
inline constexpr int kMostRanges = 64;  // four packs of 16 bytes make two sectors
inline constexpr int64_t kEnoughSumThreads = 1 << 17;

// out = or += the sum over parts of partial[part]: `size` elements of each, in rows of `length`
// that begin `stride` elements apart in out. None where there is no out.
struct SumParts {
  const float* partial = nullptr;
  int parts = 0;
  int64_t size = 0;
  float* out = nullptr;
  int64_t length = 0, stride = 0;
  Divisor by_length{1};
  bool accumulate = false;
  // How a block's threads share the work: 2^log_columns neighbouring packs by ranges of `range`
  // parts.
  int log_columns = 0, range = 0, blocks = 0;

  // Whether N neighbours are in one row, and packs.
  template <int N>
  bool packs() const {
    return packs_fit<float, N>(size, partial, out) && length % N == 0 && stride % N == 0;
  }
  // Into `most` ranges at most, for `threads` of a block. None of less than a thread loads at once:
  // they would not end earlier.
  void split(int N, int most = kMostRanges, int threads = kSumThreads) {
    int ranges = 1;
    while (ranges < most && ranges * kPartsAtOnce < parts && size / N * ranges < kEnoughSumThreads)
      ranges *= 2;
    const int columns = threads / ranges;
    log_columns = std::countr_zero(unsigned(columns));
    range = int(ceil_div(ceil_div(parts, ranges), kPartsAtOnce) * kPartsAtOnce);
    blocks = int(ceil_div(size, columns * N));
  }

  // Adds N neighbours from i on, of range number r.
  template <int N>
  __device__ __forceinline__ void add_range(int64_t i, int r, float (&sums)[N]) const {
    const float* from = partial + r * range * size + i;
    const int left = parts - r * range;
    int count = left < range ? left : range;
    // More rounds at once take more registers than they are worth.
    TESSERA_NO_UNROLL
    for (; count >= kPartsAtOnce; count -= kPartsAtOnce) add<kPartsAtOnce>(from, sums);
    if (count <= 0) return;
    if (count & 2) add<2>(from, sums);
    if (count & 1) add<1>(from, sums);
  }
  template <int count, int N>
  __device__ __forceinline__ void add(const float*& from, float (&sums)[N]) const {
    Pack<float, N> in[count];
    for (int k = 0; k < count; ++k) in[k] = Pack<float, N>::load(from + k * size);
    for (int k = 0; k < count; ++k)
      for (int j = 0; j < N; ++j) sums[j] += in[k][j];
    from += count * size;
  }
  template <int N>
  __device__ __forceinline__ void put(int64_t i, const float (&sums)[N]) const {
    int64_t row = i;
    const int64_t point = by_length.divide(row);
    put_pack(out + row * stride + point, Pack<float, N>::of(sums), accumulate);
  }
};

template <int N>
struct RangeSums {
  Pack<float, N> of[kSumThreads];
};

// Two sums; the second one's blocks come after the first one's. Told that four blocks a
// multiprocessor are enough, nvcc spends the registers that a thread's loads need to be under way
// together.
template <int N>
__global__ void __launch_bounds__(kSumThreads, 4) sum_parts_kernel(SumParts a, SumParts b) {
  ptx::begin_kernel();
  auto& ranges = shared_memory<RangeSums<N>>();
  const bool is_first = int(blockIdx.x) < a.blocks;
  const SumParts s = is_first ? a : b;
  const int block = int(blockIdx.x) - (is_first ? 0 : a.blocks);
  const int columns = 1 << s.log_columns, range = int(threadIdx.x) >> s.log_columns;
  const int column = int(threadIdx.x) & (columns - 1);
  const int64_t i = (int64_t(block) * columns + column) * N;
  float sums[N] = {};
  if (i < s.size) s.add_range(i, range, sums);
  if (columns < kSumThreads) {
    Pack<float, N>::of(sums).store(ranges.of[threadIdx.x].values);
    __syncthreads();
    if (range > 0) return;
    for (int from = column + columns; from < kSumThreads; from += columns)
      for (int j = 0; j < N; ++j) sums[j] += ranges.of[from][j];
  }
  if (i < s.size) s.put(i, sums);
}

// partial [parts, ...]
inline SumParts parts_of(const Tensor& partial, float* out, int64_t length, int64_t stride,
                         GradMode mode) {
  const int64_t parts = partial.dim(0);
  ENSURE(parts <= INT32_MAX / 2, "a sum of ", parts, " parts");
  return {partial.data<float>(),
          int(parts),
          partial.numel() / parts,
          out,
          length,
          stride,
          Divisor(length),
          mode == GradMode::Accumulate};
}
// out has the shape of a part, whatever that is. No sums of what is undefined.
inline SumParts parts_of(const Tensor& partial, Grad out) {
  if (!partial.defined()) return {};
  const int64_t size = out.tensor.numel();
  return parts_of(partial, out.tensor.data<float>(), size, size, out.mode);
}

// One or two sums in one launch.
inline void sum_parts(Stream& stream, SumParts a, SumParts b = {}) {
  const auto run = [&](auto pack) {
    constexpr int N = decltype(pack)::value;
    a.split(N), b.split(N);
    if (a.blocks + b.blocks == 0) return;
    launch_next<sum_parts_kernel<N>>({cuda_stream(stream), dim3(unsigned(a.blocks + b.blocks)),
                                      dim3(kSumThreads), sizeof(RangeSums<N>)},
                                     a, b);
  };
  with_pack<4>(a.packs<4>() && b.packs<4>(), run);
}

}  // namespace tessera::TESSERA_CUDA
