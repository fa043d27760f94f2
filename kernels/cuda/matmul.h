// The matrix product of Linear: cuBLAS on a GPU, plain loops on the host model.
#pragma once

#include "kernels/cuda/kernel.h"

namespace tessera::TESSERA_CUDA {

// A factor of a product, as it is or transposed.
struct Factor {
  const Tensor& matrix;
  bool transposed = false;
};

// c [M,N] = a [M,K] b [K,N], or c += a b. Factors are f32 or both bf16, c is f32 or like them; sums
// are kept in float. Factors of f32 may be rounded to tf32 where Stream::math allows it. Throws
// InputError where cuBLAS is needed and cannot be loaded.
void matmul(Stream& stream, Factor a, Factor b, Tensor& c, GradMode mode);

}  // namespace tessera::TESSERA_CUDA
