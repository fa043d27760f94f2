// Counter-based random numbers: the value depends on nothing but its key, so any batch split,
// thread count or device draws the same.
//
// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).
// Normal numbers: Box-Muller. Logarithm, sine and cosine are polynomials of our own (minimax fits,
// error below 1e-7) written in fmaf: no multiplication feeds an addition outside of an fmaf, so no
// compiler can contract them differently, and every device gives the same bits.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

// The functions here run in kernels, too.
#ifdef __CUDACC__
#define TESSERA_HD __host__ __device__
#else
#define TESSERA_HD
#endif

namespace tessera {

// Streams of numbers that must not overlap.
enum class Purpose : uint32_t { init = 1, shuffle, timestep, noise, eval_noise };

struct RngKey {
  uint64_t seed;
  uint32_t epoch;
  uint32_t sample;
  Purpose purpose;
};

using Random4 = std::array<uint32_t, 4>;

TESSERA_HD inline Random4 philox4x32(Random4 counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {uint32_t(product1 >> 32) ^ counter[1] ^ key0, uint32_t(product1),
               uint32_t(product0 >> 32) ^ counter[3] ^ key1, uint32_t(product0)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

// The four words of block `block` of a key.
TESSERA_HD inline Random4 random4(const RngKey& key, uint32_t block) {
  return philox4x32({block, key.sample, key.epoch, uint32_t(key.purpose)}, uint32_t(key.seed),
                    uint32_t(key.seed >> 32));
}

// Integer in 0 .. bound-1.
TESSERA_HD inline uint32_t uniform_below(uint32_t word, uint32_t bound) {
  return uint32_t((uint64_t{word} * bound) >> 32);
}

// In [0, 1), a multiple of 2^-24.
TESSERA_HD inline float uniform01(uint32_t word) { return float(word >> 8) * 0x1p-24f; }

// Natural logarithm of a normal number in (0, 1].
TESSERA_HD inline float log_unit(float u) {
  uint32_t bits = std::bit_cast<uint32_t>(u);
  const int32_t exponent =
      (int32_t(bits) - 0x3F3504F3) >> 23;  // u = m 2^exponent, m near [.7, 1.4)
  bits -= uint32_t(exponent) << 23;
  const float f = std::bit_cast<float>(bits) - 1.0f;
  float p = -0.0786001673f;
  p = fmaf(p, f, 0.128813316f);
  p = fmaf(p, f, -0.131284413f);
  p = fmaf(p, f, 0.141812261f);
  p = fmaf(p, f, -0.166245936f);
  p = fmaf(p, f, 0.200022854f);
  p = fmaf(p, f, -0.250008091f);
  p = fmaf(p, f, 0.333333167f);
  p = fmaf(p, f, -0.5f);
  p = fmaf(p, f * f, f);
  return fmaf(float(exponent), 0.693147181f, p);
}

// cos and sin of 2 pi u for u in [0, 1].
TESSERA_HD inline void cos_sin_turn(float u, float& cosine, float& sine) {
  const int quadrant = int(fmaf(u, 4.0f, 0.5f));
  const float r = fmaf(u, 4.0f, -float(quadrant));  // in [-.5, .5], in quarter turns
  const float z = r * r;
  float s = fmaf(fmaf(fmaf(-0.00460217697f, z, 0.0796802281f), z, -0.645963479f), z, 1.57079632f);
  s = s * r;
  float c = fmaf(fmaf(9.03631694e-4f, z, -0.0208600713f), z, 0.253669204f);
  c = fmaf(fmaf(c, z, -1.23370054f), z, 1.0f);
  const bool odd = quadrant & 1;
  cosine = odd ? s : c;
  sine = odd ? c : s;
  if ((quadrant + 1) & 2) cosine = -cosine;
  if (quadrant & 2) sine = -sine;
}

// Four standard normal numbers of block `block` of a key.
TESSERA_HD inline std::array<float, 4> normal4(const RngKey& key, uint32_t block) {
  const Random4 words = random4(key, block);
  std::array<float, 4> values;
  for (int i = 0; i < 4; i += 2) {
    const float u = float((words[i] >> 8) + 1) * 0x1p-24f;  // (0, 1]
    const float radius = std::sqrt(-2.0f * log_unit(u));
    float cosine, sine;
    cos_sin_turn(uniform01(words[i + 1]), cosine, sine);
    values[i] = radius * cosine;
    values[i + 1] = radius * sine;
  }
  return values;
}

}  // namespace tessera
