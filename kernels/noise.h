// What images, timesteps and noise are made by (kernels.h), on every device.
#pragma once

#include "core/rng.h"
#include "kernels/kernels.h"

namespace tessera {

TESSERA_HD inline int32_t timestep_of(const NoiseSpec& spec, uint32_t sample) {
  const RngKey key{spec.seed, spec.epoch, sample, Purpose::timestep};
  return int32_t(uniform_below(random4(key, 0)[0], 1000));
}

TESSERA_HD inline float normalized(uint8_t value) { return (float(value) / 255.0f - 0.5f) / 0.5f; }

// Of the noise that a sample gets at timestep t.
TESSERA_HD inline RngKey noise_key(const NoiseSpec& spec, NoiseUse use, uint32_t sample, int t) {
  return use == NoiseUse::Training ? RngKey{spec.seed, spec.epoch, sample, Purpose::noise}
                                   : RngKey{spec.seed, uint32_t(t), sample, Purpose::eval_noise};
}

}  // namespace tessera
