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

// partial [parts, elements of out]
inline void sum_parts(Stream& stream, const Tensor& partial, Grad out) {
  const int64_t size = out.tensor.numel();
  for_each(stream, size,
           SumParts{partial.data<float>(), partial.dim(0), size, out.tensor.data<float>(),
                    out.mode == GradMode::Accumulate});
}

}  // namespace tessera::TESSERA_CUDA
