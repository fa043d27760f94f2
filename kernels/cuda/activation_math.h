// Activations and their derivatives in float. The cancellation-free forms of the CPU's kernels are
// not needed: erfcf and tanhf of CUDA are accurate to a few units in the last place.
#pragma once

#include "kernels/cuda/kernel.h"
#include "kernels/dispatch.h"

namespace tessera::TESSERA_CUDA {

template <Activation act>
struct Act {
  __device__ __forceinline__ static float value(float x) {
    if constexpr (act == Activation::Relu) {
      return x < 0.0f ? 0.0f : x;
    } else if constexpr (act == Activation::Gelu) {
      return x * (0.5f * erfcf(-0.707106781f * x));
    } else {
      return 0.5f * x * (1.0f + tanhf(0.797884561f * (x + 0.044715f * x * x * x)));
    }
  }

  __device__ __forceinline__ static float derivative(float x) {
    if constexpr (act == Activation::Relu) {
      return x <= 0.0f ? 0.0f : 1.0f;
    } else if constexpr (act == Activation::Gelu) {
      return 0.5f * erfcf(-0.707106781f * x) + x * (0.398942280f * expf(-0.5f * x * x));
    } else {
      const float t = tanhf(0.797884561f * (x + 0.044715f * x * x * x));
      // 0 * inf would be NaN.
      const float slope = 0.797884561f * (1.0f + 0.134145f * fminf(x * x, 1e18f));
      return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * slope;
    }
  }
};

}  // namespace tessera::TESSERA_CUDA
