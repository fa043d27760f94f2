// GELU and its derivative in float. The cancellation-free forms of the CPU's kernels are not
// needed: erfcf and tanhf of CUDA are accurate to a few units in the last place.
#pragma once

#include "kernels/cuda/kernel.h"

namespace tessera::TESSERA_CUDA {

template <GeluForm form>
__device__ __forceinline__ float gelu_of(float x) {
  if constexpr (form == GeluForm::Exact) return x * (0.5f * erfcf(-0.707106781f * x));
  return 0.5f * x * (1.0f + tanhf(0.797884561f * (x + 0.044715f * x * x * x)));
}

template <GeluForm form>
__device__ __forceinline__ float gelu_derivative_of(float x) {
  if constexpr (form == GeluForm::Exact)
    return 0.5f * erfcf(-0.707106781f * x) + x * (0.398942280f * expf(-0.5f * x * x));
  const float t = tanhf(0.797884561f * (x + 0.044715f * x * x * x));
  const float slope = 0.797884561f * (1.0f + 0.134145f * fminf(x * x, 1e18f));  // 0 * inf is NaN
  return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * slope;
}

}  // namespace tessera::TESSERA_CUDA
