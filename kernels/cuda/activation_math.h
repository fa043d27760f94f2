// Activations and their derivatives in float, for values that are stored as T. In f32 by erfcf,
// expf and tanhf of CUDA, accurate to a few units in the last place. In bf16, where a pass moves
// half the bytes, these took longer than memory does; so by formulas of some 15 instructions, off
// by 2e-6 of their terms, and a few times that where x is below -5. The f32 sums of gradients do
// not feel it.
#pragma once

#include "kernels/cuda/kernel.h"
#include "kernels/cuda/ptx/approx.h"
#include "kernels/dispatch.h"

namespace tessera::TESSERA_CUDA {

// exp(-x^2 / 2).
__device__ __forceinline__ float approx_gauss(float x) {
  return ptx::approx_exp2(-0.721347520f * x * x);
}

// Phi(-a) / exp(-a^2 / 2) of the standard normal distribution function Phi, a >= 0. With
// q = 1 / (1 + .3 a) it is q Q(q), the form of Abramowitz and Stegun 7.1.25, here with Q of degree
// 5 and fitted for the relative error: below 2e-6 up to a = 8.
struct Tail {
  float p, q;  // Q(q), q
};
__device__ __forceinline__ Tail approx_tail(float a) {
  const float q = ptx::approx_reciprocal(1.0f + 0.3f * a);
  float p = -0.0826471169667f;
  p = p * q + 0.233105456536f;
  p = p * q - 0.0370660741700f;
  p = p * q + 0.155504491122f;
  p = p * q + 0.110722652982f;
  p = p * q + 0.120379813989f;
  return {p, q};
}

// x Phi(x) = max(x, 0) - |x| Phi(-|x|). NaN where x is infinite, as is the slope.
__device__ __forceinline__ float approx_gelu(float x) {
  const auto [p, q] = approx_tail(fabsf(x));
  return fmaxf(x, 0.0f) - fabsf(x) * approx_gauss(x) * (p * q);
}
// Phi(x) + x phi(x): of -|x|, and the other side by symmetry.
__device__ __forceinline__ float approx_gelu_slope(float x) {
  const auto [p, q] = approx_tail(fabsf(x));
  const float low = approx_gauss(x) * (p * q - 0.398942280f * fabsf(x));
  return x < 0.0f ? low : 1.0f - low;
}

// (1 + tanh(y)) / 2 with y = sqrt(2/pi) (x + .044715 x^3), which is 1 / (1 + exp(-2y)).
__device__ __forceinline__ float approx_gelu_tanh_factor(float x) {
  const float exponent = x * (-2.30220819f - 0.102943240f * (x * x));
  return ptx::approx_reciprocal(1.0f + ptx::approx_exp2(exponent));
}

template <Activation act>
struct Act {
  template <class T>
  __device__ __forceinline__ static float value(float x) {
    if constexpr (act == Activation::Relu) {
      return x < 0.0f ? 0.0f : x;
    } else if constexpr (act == Activation::Gelu) {
      if constexpr (sizeof(T) == 2) return approx_gelu(x);
      return x * (0.5f * erfcf(-0.707106781f * x));
    } else {
      if constexpr (sizeof(T) == 2) return x * approx_gelu_tanh_factor(x);
      return 0.5f * x * (1.0f + tanhf(0.797884561f * (x + 0.044715f * x * x * x)));
    }
  }

  template <class T>
  __device__ __forceinline__ static float derivative(float x) {
    if constexpr (act == Activation::Relu) {
      return x <= 0.0f ? 0.0f : 1.0f;
    } else if constexpr (act == Activation::Gelu) {
      if constexpr (sizeof(T) == 2) return approx_gelu_slope(x);
      return 0.5f * erfcf(-0.707106781f * x) + x * (0.398942280f * expf(-0.5f * x * x));
    } else {
      // 0 * inf would be NaN.
      const float slope = 0.797884561f * (1.0f + 0.134145f * fminf(x * x, 1e18f));
      if constexpr (sizeof(T) == 2) {
        const float s = approx_gelu_tanh_factor(x);
        return s + x * (s * (1.0f - s)) * (2.0f * slope);
      }
      const float t = tanhf(0.797884561f * (x + 0.044715f * x * x * x));
      return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * slope;
    }
  }
};

}  // namespace tessera::TESSERA_CUDA
