// Sums that blocks left as parts, added in their order: the second half of every sum whose depth is
// split.
#pragma once

#include "kernels/cuda/index.h"

namespace tessera::TESSERA_CUDA {

// out = or += the sum over parts of partial[part], in order: `size` elements of each, in rows of
// `length` that begin `stride` elements apart in out.
struct SumParts {
  const float* partial;
  int64_t parts, size;
  float* out;
  int64_t length, stride;
  Divisor by_length;
  bool accumulate;

  // Of N neighbours from i on.
  template <int N>
  __device__ __forceinline__ void sum(int64_t i) const {
    float sums[N];
    const auto first = Pack<float, N>::load(partial + i);
    for (int j = 0; j < N; ++j) sums[j] = first[j];
    for (int64_t part = 1; part < parts; ++part) {
      const auto next = Pack<float, N>::load(partial + part * size + i);
      for (int j = 0; j < N; ++j) sums[j] += next[j];
    }
    int64_t row = i;
    const int64_t point = by_length.divide(row);
    put_pack(out + row * stride + point, Pack<float, N>::of(sums), accumulate);
  }
  // Whether N neighbours are in one row, and packs.
  template <int N>
  bool packs() const {
    return packs_fit<float, N>(size, partial, out) && length % N == 0 && stride % N == 0;
  }
};

// partial [parts, ...]
inline SumParts parts_of(const Tensor& partial, float* out, int64_t length, int64_t stride,
                         GradMode mode) {
  const int64_t parts = partial.dim(0);
  return {partial.data<float>(),
          parts,
          partial.numel() / parts,
          out,
          length,
          stride,
          Divisor(length),
          mode == GradMode::Accumulate};
}
// out has the shape of a part, whatever that is.
inline SumParts parts_of(const Tensor& partial, Grad out) {
  const int64_t size = out.tensor.numel();
  return parts_of(partial, out.tensor.data<float>(), size, size, out.mode);
}

template <int N>
struct SumOfParts {
  SumParts a;
  __device__ void operator()(int64_t i) const { a.sum<N>(i * N); }
};
// Two sums in one launch.
template <int N>
struct SumsOfParts {
  SumParts a, b;
  __device__ void operator()(int64_t i) const {
    const int64_t first = i * N;
    first < a.size ? a.sum<N>(first) : b.sum<N>(first - a.size);
  }
};

// From so many elements on there are threads enough with four each, and a quarter of the
// instructions.
inline constexpr int64_t kSumByPacks = 1 << 18;

inline void sum_parts(Stream& stream, const SumParts& a) {
  if (a.size >= kSumByPacks && a.packs<4>()) return for_each(stream, a.size / 4, SumOfParts<4>{a});
  for_each(stream, a.size, SumOfParts<1>{a});
}
inline void sum_parts(Stream& stream, const SumParts& a, const SumParts& b) {
  if (a.size >= kSumByPacks && a.packs<4>() && b.packs<4>())
    return for_each(stream, (a.size + b.size) / 4, SumsOfParts<4>{a, b});
  for_each(stream, a.size + b.size, SumsOfParts<1>{a, b});
}

}  // namespace tessera::TESSERA_CUDA
