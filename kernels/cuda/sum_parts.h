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
  Divisor length;
  int64_t stride;
  bool accumulate;
  __device__ void operator()(int64_t i) const {
    float sum = __ldg(partial + i);
    for (int64_t part = 1; part < parts; ++part) sum += __ldg(partial + part * size + i);
    int64_t row = i;
    const int64_t point = length.divide(row);
    put_at(out + row * stride + point, sum, accumulate);
  }
};

// partial [parts, ...]
inline SumParts parts_of(const Tensor& partial, float* out, int64_t length, int64_t stride,
                         GradMode mode) {
  const int64_t parts = partial.dim(0);
  return {partial.data<float>(), parts,  partial.numel() / parts,     out,
          Divisor(length),       stride, mode == GradMode::Accumulate};
}
// out has the shape of a part, whatever that is.
inline SumParts parts_of(const Tensor& partial, Grad out) {
  const int64_t size = out.tensor.numel();
  return parts_of(partial, out.tensor.data<float>(), size, size, out.mode);
}

inline void sum_parts(Stream& stream, const SumParts& sum) { for_each(stream, sum.size, sum); }

// Two sums in one launch.
struct SumTwoParts {
  SumParts a, b;
  __device__ void operator()(int64_t i) const { i < a.size ? a(i) : b(i - a.size); }
};
inline void sum_parts(Stream& stream, const SumParts& a, const SumParts& b) {
  for_each(stream, a.size + b.size, SumTwoParts{a, b});
}

}  // namespace tessera::TESSERA_CUDA
