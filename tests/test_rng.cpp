// Random numbers: the published Philox vectors, the distribution of normal4, and bits that must
// never change.
#include "core/rng.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <numbers>

using namespace tessera;

namespace {

std::vector<float> draw_normals(size_t count) {
  const RngKey key{1, 0, 0, Purpose::noise};
  std::vector<float> values;
  for (uint32_t block = 0; values.size() < count; ++block) {
    const std::array<float, 4> four = normal4(key, block);
    values.insert(values.end(), four.begin(), four.end());
  }
  return values;
}

uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }

}  // namespace

// The vectors of the Random123 distribution, kat_vectors, philox4x32 with 10 rounds.
TEST_CASE("philox4x32 gives the published numbers", "[rng]") {
  CHECK(philox4x32({0, 0, 0, 0}, 0, 0) == Random4{0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8});
  const uint32_t ones = 0xFFFFFFFF;
  CHECK(philox4x32({ones, ones, ones, ones}, ones, ones) ==
        Random4{0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD});
  CHECK(philox4x32({0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344}, 0xA4093822, 0x299F31D0) ==
        Random4{0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1});
}

TEST_CASE("every part of a key changes the numbers", "[rng]") {
  const RngKey key{uint64_t{1} << 40, 2, 3, Purpose::noise};
  const Random4 words = random4(key, 4);
  CHECK(words != random4(key, 5));
  CHECK(words != random4({key.seed + 1, 2, 3, Purpose::noise}, 4));
  CHECK(words != random4({key.seed * 2, 2, 3, Purpose::noise}, 4));
  CHECK(words != random4({key.seed, 3, 3, Purpose::noise}, 4));
  CHECK(words != random4({key.seed, 2, 4, Purpose::noise}, 4));
  CHECK(words != random4({key.seed, 2, 3, Purpose::eval_noise}, 4));
}

TEST_CASE("numbers of a key never change", "[rng]") {
  const RngKey key{42, 3, 59999, Purpose::noise};
  CHECK(random4(key, 5) == Random4{0x4C8423F2, 0x76F65E62, 0x9BDF7C98, 0x84AD07B5});
  const std::array<float, 4> z = normal4(key, 5);
  CHECK(bits_of(z[0]) == 0xBFC20E56);  // -1.51606250
  CHECK(bits_of(z[1]) == 0x3EAF0F63);  // 0.341914266
  CHECK(bits_of(z[2]) == 0xBF7D54D6);  // -0.989575744
  CHECK(bits_of(z[3]) == 0xBDE99CBA);  // -0.114068463
}

TEST_CASE("uniform numbers stay in their range", "[rng]") {
  CHECK(uniform_below(0, 1000) == 0);
  CHECK(uniform_below(0xFFFFFFFF, 1000) == 999);
  CHECK(uniform01(0) == 0.0f);
  CHECK(uniform01(0xFFFFFFFF) == 1.0f - 0x1p-24f);
}

TEST_CASE("the polynomials follow libm", "[rng]") {
  double log_error = 0, turn_error = 0;
  for (int i = 1; i <= 1 << 24; i += 5) {  // 5 does not divide 2^24: all kinds of bits are met
    const float u = float(i) * 0x1p-24f, turn = float(i - 1) * 0x1p-24f;
    const double expected = std::log(double(u)), angle = 2 * std::numbers::pi * turn;
    log_error = std::max(log_error, std::abs(log_unit(u) - expected) / std::abs(expected));
    float cosine, sine;
    cos_sin_turn(turn, cosine, sine);
    turn_error = std::max(
        {turn_error, std::abs(cosine - std::cos(angle)), std::abs(sine - std::sin(angle))});
  }
  CHECK(log_error < 1e-7);
  CHECK(turn_error < 1e-7);
  CHECK(log_unit(1.0f) == 0.0f);
}

TEST_CASE("normal4 is Box-Muller of its words", "[rng]") {
  double worst = 0;
  for (uint32_t block = 0; block < 10000; ++block) {
    const RngKey key{9, 1, 2, Purpose::noise};
    const Random4 words = random4(key, block);
    const std::array<float, 4> z = normal4(key, block);
    for (int i = 0; i < 4; i += 2) {
      const double radius = std::sqrt(-2 * std::log(((words[i] >> 8) + 1) * 0x1p-24));
      const double angle = 2 * std::numbers::pi * ((words[i + 1] >> 8) * 0x1p-24);
      worst = std::max({worst, std::abs(z[i] - radius * std::cos(angle)),
                        std::abs(z[i + 1] - radius * std::sin(angle))});
    }
  }
  CHECK(worst < 1e-6);
}

TEST_CASE("normal4 has the moments of the normal distribution", "[rng]") {
  const std::vector<float> values = draw_normals(1000000);
  double sums[4] = {};
  for (double z : values)
    for (int power = 0; power < 4; ++power) sums[power] += std::pow(z, power + 1);
  const double n = double(values.size()), error = 4 / std::sqrt(n);  // four standard deviations
  CHECK(std::abs(sums[0] / n) < error);
  CHECK(std::abs(sums[1] / n - 1) < error * std::sqrt(2));
  CHECK(std::abs(sums[2] / n) < error * std::sqrt(15));
  CHECK(std::abs(sums[3] / n - 3) < error * std::sqrt(96));
}

TEST_CASE("normal4 follows the normal distribution function", "[rng]") {
  std::vector<float> values = draw_normals(200000);
  std::sort(values.begin(), values.end());
  const double n = double(values.size());
  double distance = 0;  // of Kolmogorov and Smirnov
  for (size_t i = 0; i < values.size(); ++i) {
    const double cdf = 0.5 * std::erfc(-values[i] / std::numbers::sqrt2);
    distance = std::max({distance, cdf - double(i) / n, double(i + 1) / n - cdf});
  }
  CHECK(distance * std::sqrt(n) < 1.63);  // exceeded by chance once in 100
}

TEST_CASE("neighbours among the normal numbers are uncorrelated", "[rng]") {
  const std::vector<float> values = draw_normals(400000);
  for (size_t lag : {1, 2, 3, 4}) {
    double sum = 0;
    for (size_t i = lag; i < values.size(); ++i) sum += double(values[i]) * values[i - lag];
    CHECK(std::abs(sum / double(values.size())) < 4 / std::sqrt(double(values.size())));
  }
}
