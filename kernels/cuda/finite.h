// Whether a value is neither NaN nor infinite, from its bits: no comparison, so that signalling
// NaNs raise nothing.
#pragma once

#include "kernels/cuda/kernel.h"

namespace tessera::TESSERA_CUDA {

__device__ __forceinline__ bool is_finite(float x) {
  return (__float_as_uint(x) & 0x7F800000) != 0x7F800000;
}
__device__ __forceinline__ bool is_finite(bf16 x) { return (x.bits & 0x7F80) != 0x7F80; }

}  // namespace tessera::TESSERA_CUDA
