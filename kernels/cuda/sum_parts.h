// Sums that blocks left as parts, added in their order: the second half of every sum whose depth is
// split.
#pragma once

#include "kernels/cuda/kernel.h"

namespace tessera::TESSERA_CUDA {

// out[i] = or += the sum over parts of partial[part][i], in order.
struct SumParts {
  const float* partial;
  int64_t parts, size;
  float* out;
  bool accumulate;
  __device__ void operator()(int64_t i) const {
    float sum = partial[i];
    for (int64_t part = 1; part < parts; ++part) sum += partial[part * size + i];
    put_at(out + i, sum, accumulate);
  }
};

inline SumParts parts_of(const Tensor& partial, Grad out) {
  return {partial.data<float>(), partial.dim(0), out.tensor.numel(), out.tensor.data<float>(),
          out.mode == GradMode::Accumulate};
}

// partial [parts, elements of out]
inline void sum_parts(Stream& stream, const Tensor& partial, Grad out) {
  for_each(stream, out.tensor.numel(), parts_of(partial, out));
}

// Two such sums in one launch.
struct SumTwoParts {
  SumParts a, b;
  __device__ void operator()(int64_t i) const { i < a.size ? a(i) : b(i - a.size); }
};
inline void sum_parts(Stream& stream, const Tensor& partial_a, Grad a, const Tensor& partial_b,
                      Grad b) {
  for_each(stream, a.tensor.numel() + b.tensor.numel(),
           SumTwoParts{parts_of(partial_a, a), parts_of(partial_b, b)});
}

}  // namespace tessera::TESSERA_CUDA
