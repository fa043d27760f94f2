// Activations and their derivatives in float, written so that compilers vectorise the loops that
// call them: no branches, no library calls.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/kernels.h"

namespace tessera::cpu {

// e^x for x <= 0. Absolute error below 2e-7: 2^f by a minimax polynomial on [-.5, .5].
inline float exp_negative(float x) {
  const float y = std::max(x * 1.44269504f, -125.0f);
  const float shifted = y + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
  const float f = y - (shifted - 12582912.0f);
  float p = 1.5478010e-4f;
  p = p * f + 1.34004317e-3f;
  p = p * f + 9.61799456e-3f;
  p = p * f + 0.0555032722f;
  p = p * f + 0.240226515f;
  p = p * f + 0.693147207f;
  p = p * f + 1.0f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(p) +
                              (std::bit_cast<uint32_t>(shifted) << 23));
}

// Standard normal distribution function `cdf` and density `pdf`. With a = |x|, q = 1/(1 + .3 a):
// Phi(-a) = exp(-a^2/2) q Q(q), Q a minimax fit of degree 7; absolute error below 1e-7.
inline void normal_cdf_pdf(float x, float& cdf, float& pdf) {
  const float gauss = exp_negative(-0.5f * x * x);
  const float q = 1.0f / (1.0f + 0.3f * std::fabs(x));
  float p = 0.0190712077f;
  p = p * q - 0.0679812438f;
  p = p * q + 3.10205287e-3f;
  p = p * q + 0.200782768f;
  p = p * q - 0.0605752262f;
  p = p * q + 0.183399961f;
  p = p * q + 0.100480711f;
  p = p * q + 0.121719706f;
  const float tail = gauss * q * p;
  cdf = x < 0.0f ? tail : 1.0f - tail;
  pdf = 0.398942280f * gauss;
}

// tanh(x / 2) = (1 - e) / (1 + e) with e = exp(-|x|), odd in x.
inline float tanh_half(float x) {
  const float e = exp_negative(-std::fabs(x));
  return std::copysign((1.0f - e) / (1.0f + e), x);
}

// sqrt(2/pi) (x + .044715 x^3), doubled.
inline float gelu_tanh_argument(float x) { return 1.59576912f * x * (1.0f + 0.044715f * x * x); }

// The activation and its derivative.
template <Activation act>
struct Act {
  static float value(float x) {
    if constexpr (act == Activation::Relu) {
      return x < 0.0f ? 0.0f : x;
    } else if constexpr (act == Activation::GeluTanh) {
      return 0.5f * x * (1.0f + tanh_half(gelu_tanh_argument(x)));
    } else {
      float cdf, pdf;
      normal_cdf_pdf(x, cdf, pdf);
      return x * cdf;
    }
  }

  static float derivative(float x) {
    if constexpr (act == Activation::Relu) {
      return x <= 0.0f ? 0.0f : 1.0f;
    } else if constexpr (act == Activation::GeluTanh) {
      const float t = tanh_half(gelu_tanh_argument(x));
      // Far out the factor before it is 0, and 0 * inf would be NaN.
      const float slope = 0.797884561f * (1.0f + 0.134145f * std::min(x * x, 1e18f));
      return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * slope;
    } else {
      float cdf, pdf;
      normal_cdf_pdf(x, cdf, pdf);
      // exp_negative() ends at 2^-125, of which a huge x would make something.
      return cdf + std::min(std::max(x, -16.0f), 16.0f) * pdf;
    }
  }
};

}  // namespace tessera::cpu
