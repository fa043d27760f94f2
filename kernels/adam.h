// The factors of one step of Adam, the same for all parameters and devices.
#pragma once

#include <array>
#include <bit>
#include <cmath>

#include "kernels/kernels.h"

namespace tessera {

// Calculated in double, as PyTorch does. Clipping is not among them: it depends on the norm, which
// is on the device.
template <class T>
struct AdamFactors {
  static constexpr int kCount = 8;
  T decay, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, root_correction2, eps;

  AdamFactors(const AdamSpec& spec, int64_t step)
      : decay(T(1 - spec.lr * spec.weight_decay)),
        beta1(T(spec.beta1)),
        one_minus_beta1(T(1 - spec.beta1)),
        beta2(T(spec.beta2)),
        one_minus_beta2(T(1 - spec.beta2)),
        step_size(T(spec.lr / (1 - std::pow(spec.beta1, double(step))))),
        root_correction2(T(std::sqrt(1 - std::pow(spec.beta2, double(step))))),
        eps(T(spec.eps)) {}
};
static_assert(sizeof(AdamFactors<float>) == AdamFactors<float>::kCount * sizeof(float));

// As AdamTensors::factors holds them.
inline std::array<float, AdamFactors<float>::kCount> adam_factors(const AdamSpec& spec,
                                                                  int64_t step) {
  return std::bit_cast<std::array<float, AdamFactors<float>::kCount>>(
      AdamFactors<float>(spec, step));
}

}  // namespace tessera
