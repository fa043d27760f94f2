// What the primitives compute, in plain loops: primitives.h.
#include "tests/cuda/primitives.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/check.h"
#include "core/dtype.h"

namespace tessera {
namespace {

using Words = const uint32_t*;

void draw_bits(Random& random, int count, uint32_t* in) {
  for (int i = 0; i < count; ++i) in[i] = uint32_t(random());
}

// Floats of all sizes, infinities and NaNs; many in the middle between two values with fewer bits.
void draw_floats(Random& random, int count, uint32_t* in) {
  for (int i = 0; i < count; ++i) {
    uint32_t bits = uint32_t(random());
    if (random() % 4 == 0) bits = (bits & 0xFFFFE000) | 0x1000;  // a tie of tf32
    if (random() % 4 == 0) bits = (bits & 0xFFFF0000) | 0x8000;  // a tie of bf16
    if ((bits & 0x7FFFFFFF) > 0x7F800000 && random() % 2) bits &= 0xFF800000;
    if (random() % 64 == 0) bits = (bits & 0x80000000) | 0x7F800001;  // a NaN of the lowest bit
    in[i] = bits;
  }
}

// A primitive that moves bits: in and out are words of one block.
template <class Expected>
PrimitiveDefinition bits(const std::string& name, int capability, int in, int out,
                         Expected expected) {
  return {name,
          capability,
          in,
          out,
          [=](Random& random, int, uint32_t* words) { draw_bits(random, in, words); },
          [=](Words words, uint32_t* result, double* error) {
            std::fill_n(error, out, -1);
            expected(words, result);
          }};
}
template <class Expected>
PrimitiveDefinition conversion(const std::string& name, int in, Expected expected) {
  PrimitiveDefinition result = bits(name, 80, in, 32, expected);
  result.draw = [=](Random& random, int, uint32_t* words) { draw_floats(random, in, words); };
  return result;
}

// The nearest number with `bits` bits of mantissa, written as float: ties to even or away from 0. A
// NaN has all of them set and no sign; but cvt.rna.tf32 makes an infinity of one whose upper bits
// are none (as an H100 does, 2026-11-26).
uint32_t rounded(uint32_t x, int bits, bool ties_to_even) {
  const float value = std::bit_cast<float>(x);
  if (std::isnan(value) && !ties_to_even && (x & 0x007FE000) == 0) return x & 0xFF800000;
  if (std::isnan(value)) return 0x7FFFFFFF >> (23 - bits) << (23 - bits);
  if (!std::isfinite(value) || value == 0) return x;
  const int exponent = std::max(std::ilogb(value), -126);
  const double unit = std::ldexp(1.0, exponent - bits), scaled = double(value) / unit;
  const double whole = ties_to_even ? std::nearbyint(scaled) : std::round(scaled);
  const double result = whole * unit;
  const float limit = INFINITY;
  if (std::fabs(result) >= std::ldexp(1.0, 128))
    return std::bit_cast<uint32_t>(std::copysign(limit, value));
  return std::bit_cast<uint32_t>(std::copysign(float(result), value));
}

std::vector<PrimitiveDefinition> conversions() {
  return {conversion("cvt.rna.tf32", 32,
                     [](Words in, uint32_t* out) {
                       for (int i = 0; i < 32; ++i) out[i] = rounded(in[i], 10, false);
                     }),
          conversion("cvt.rn.bf16", 32,
                     [](Words in, uint32_t* out) {
                       for (int i = 0; i < 32; ++i) out[i] = rounded(in[i], 7, true) >> 16;
                     }),
          conversion("cvt.rn.bf16x2", 64, [](Words in, uint32_t* out) {
            for (int i = 0; i < 32; ++i)
              out[i] = rounded(in[i], 7, true) >> 16 | rounded(in[i + 32], 7, true);
          })};
}

double flushed(double x) { return std::fabs(x) <= 0x1p-126 ? 0 : x; }

// Of 32 floats, to 4 units in the last place. f: in double, of what is left of them without
// subnormal numbers.
template <class Draw, class F>
PrimitiveDefinition approximation(const std::string& name, Draw draw, F f) {
  return {name,
          75,
          32,
          32,
          [=](Random& random, int, uint32_t* in) { draw(random, 32, in); },
          [=](Words in, uint32_t* out, double* error) {
            for (int i = 0; i < 32; ++i) {
              const float x = std::bit_cast<float>(in[i]);
              const float y = float(flushed(f(std::fabs(x) < 0x1p-126f ? std::copysign(0, x) : x)));
              out[i] = std::bit_cast<uint32_t>(y);
              error[i] = std::isfinite(y) ? std::ldexp(std::fabs(y), -21) : 0;
            }
          }};
}

void add_approximations(std::vector<PrimitiveDefinition>& all) {
  const auto draw_exponents = [](Random& random, int count, uint32_t* in) {
    draw_floats(random, count, in);
    std::uniform_real_distribution<float> any(-140, 140);
    for (int i = 0; i < count; ++i)
      if (random() % 4) in[i] = std::bit_cast<uint32_t>(any(random));
  };
  all.push_back(
      approximation("ex2.approx.ftz", draw_exponents, [](double x) { return std::exp2(x); }));
  all.push_back(approximation("rcp.approx.ftz", draw_floats, [](double x) { return 1 / x; }));
}

// Element [row][column] of matrix i, whose rows are eight 16-bit elements each.
uint32_t element(Words matrices, int i, int row, int column) {
  const uint32_t pair = matrices[(8 * i + row) * 4 + column / 2];
  return column % 2 ? pair >> 16 : pair & 0xFFFF;
}

void add_matrices(std::vector<PrimitiveDefinition>& all) {
  for (const bool transposed : {false, true})
    for (const int n : {1, 2, 4}) {
      const std::string form = concat(".x", n, transposed ? ".trans" : "");
      all.push_back(bits("ldmatrix" + form, 75, 128, 32 * n, [=](Words in, uint32_t* out) {
        for (int i = 0; i < n; ++i)
          for (int row = 0; row < 8; ++row)
            for (int pair = 0; pair < 4; ++pair)
              out[i * 32 + row * 4 + pair] =
                  transposed
                      ? element(in, i, 2 * pair, row) | element(in, i, 2 * pair + 1, row) << 16
                      : element(in, i, row, 2 * pair) | element(in, i, row, 2 * pair + 1) << 16;
      }));
      all.push_back(bits("stmatrix" + form, 90, 32 * n, 128, [=](Words in, uint32_t* out) {
        std::fill_n(out, 128, 0u);
        // The registers of a matrix are that matrix, eight elements a row, or its transpose.
        for (int i = 0; i < n; ++i)
          for (int row = 0; row < 8; ++row)
            for (int column = 0; column < 8; ++column)
              out[(8 * i + row) * 4 + column / 2] |=
                  (transposed ? element(in, i, column, row) : element(in, i, row, column))
                  << column % 2 * 16;
      }));
    }
}

void add_copies(std::vector<PrimitiveDefinition>& all) {
  for (const int size : {4, 8, 16})
    all.push_back(bits(concat("cp.async.", size), 80, 128, 8 * size, [=](Words in, uint32_t* out) {
      std::memset(out, 0, size_t(32) * size);
      for (int lane = 0; lane < 32; ++lane)
        std::memcpy(out + lane * size / 4, in + lane * 4, size_t(lane % (size + 1)));
    }));
  all.push_back(bits("cp.async groups", 80, 256, 256, [](Words in, uint32_t* out) {
    for (int lane = 0; lane < 32; ++lane)
      for (int round = 0; round < 8; ++round)
        out[round * 32 + lane] =
            in[round * 32 + 31 - lane] + (round ? out[(round - 1) * 32 + lane] : 0);
  }));
}

void add_barriers(std::vector<PrimitiveDefinition>& all) {
  const auto reversed = [](Words in, uint32_t* out) {
    for (int i = 0; i < 128; ++i) out[i] = in[i / 32 * 32 + 31 - i % 32];
  };
  all.push_back(bits("mbarrier", 80, 128, 128, reversed));
  all.push_back(bits("mbarrier bytes", 90, 128, 128, reversed));
  all.push_back(bits("bar.sync", 75, 128, 256, [](Words in, uint32_t* out) {
    for (int i = 0; i < 256; ++i) out[i] = in[i / 64 * 32 + 31 - i % 32];
  }));
  const auto parts_and_sums = [](Words in, uint32_t* out) {
    std::copy_n(in, 128, out);
    for (int i = 31; i >= 0; --i, ++in) out[128 + i] = in[0] + in[32] + in[64] + in[96];
    out[160] = 0;
  };
  all.push_back(bits("fences", 75, 128, 161, parts_and_sums));
  all.push_back(bits("fence.proxy.async", 90, 128, 161, parts_and_sums));
  all.push_back(bits("atom.release", 75, 128, 161, parts_and_sums));
  all.push_back(bits("barrier.red", 75, 96, 288, [](Words in, uint32_t* out) {
    uint32_t odd = 0, every = 1, any = 0;
    for (int i = 0; i < 96; ++i) {
      odd += in[i] % 2;
      every &= in[i] % 64 != 0;
      any |= in[i] % 128 == 0;
    }
    std::fill_n(out, 96, odd);
    std::fill_n(out + 96, 96, every);
    std::fill_n(out + 192, 96, any);
  }));
}

void shuffle_all(Words in, uint32_t* out) {
  const int by = int(in[32] % 32);
  for (int width : {32, 8, 1}) {
    for (int lane = 0; lane < 32; ++lane) {
      const int first = lane - lane % width, end = first + width;
      const int exchanged = lane ^ by, up = lane - by, down = lane + by;
      out[lane] = in[first + int(in[32 + lane] % 32) % width];
      out[32 + lane] = in[exchanged < end ? exchanged : lane];
      out[64 + lane] = in[up >= first ? up : lane];
      out[96 + lane] = in[down < end ? down : lane];
    }
    out += 128;
  }
}

void vote_all(Words in, uint32_t* out) {
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t ballot = 0, any = 0, every = 1;
    for (int other = 0; other < 32; ++other) {
      if (in[other] % 2 != in[lane] % 2) continue;
      const uint32_t vote = in[32 + other] % 4 == 0;
      ballot |= vote << other;
      any |= vote;
      every &= vote;
    }
    out[lane] = ballot;
    out[32 + lane] = any;
    out[64 + lane] = every;
  }
}

void match_all(Words in, uint32_t* out) {
  const auto word = [&](int lane) { return in[32 + lane] % 64 ? in[32 + lane] % 4 : 2; };
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t lanes = 0, same = 0;
    for (int other = 0; other < 32; ++other) {
      if (in[other] % 2 != in[lane] % 2) continue;
      lanes |= 1u << other;
      if (word(other) == word(lane)) same |= 1u << other;
    }
    const bool all = in[0] % 2 == 0 || same == lanes;
    out[lane] = same;
    out[32 + lane] = all ? lanes : 0;
    out[64 + lane] = all;
  }
}

void reduce_all(Words in, uint32_t* out) {
  uint32_t sum = 0, every = ~0u, any = 0, odd = 0;
  for (int i = 0; i < 32; ++i) {
    sum += in[i];
    every &= in[i] | in[0];
    any |= in[i] & in[0];
    odd ^= in[i];
  }
  const auto less = [](uint32_t a, uint32_t b) { return int32_t(a) < int32_t(b); };
  const uint32_t results[] = {sum,
                              *std::min_element(in, in + 32),
                              *std::max_element(in, in + 32),
                              *std::min_element(in, in + 32, less),
                              *std::max_element(in, in + 32, less),
                              every,
                              any,
                              odd};
  for (int i = 0; i < 8; ++i) std::fill_n(out + 32 * i, 32, results[i]);
}

void atomics(Words in, uint32_t* out) {
  std::copy_n(in, 12, out);
  const auto less = [](uint32_t a, uint32_t b) { return int32_t(a) < int32_t(b); };
  for (int i = 0; i < 96; ++i) {
    out[0] += in[i];
    out[1] -= in[i];
    out[2] = std::min(out[2], in[i]);
    out[3] = std::max(out[3], in[i]);
    out[4] = std::min(out[4], in[i], less);
    out[5] = std::max(out[5], in[i], less);
    out[6] &= in[i] | in[0];
    out[7] |= in[i] & in[0];
    out[8] ^= in[i];
    out[9] = out[9] >= 76 ? 0 : out[9] + 1;
    out[11] += in[i];
  }
  out[10] = in[5];
}

}  // namespace

std::vector<PrimitiveDefinition> primitive_definitions() {
  std::vector<PrimitiveDefinition> all = mma_definitions();
  for (const PrimitiveDefinition& one : conversions()) all.push_back(one);
  add_approximations(all);
  add_matrices(all);
  add_copies(all);
  add_barriers(all);
  all.push_back(bits("shfl.sync", 75, 64, 384, shuffle_all));
  all.push_back(bits("vote.sync", 75, 64, 96, vote_all));
  all.push_back(bits("match.sync", 75, 64, 96, match_all));
  all.push_back(bits("redux.sync", 80, 32, 256, reduce_all));
  all.push_back(bits("atom", 75, 96, 12, atomics));
  return all;
}

std::vector<uint32_t> draw_inputs(const PrimitiveDefinition& definition, int round) {
  std::vector<uint32_t> in(size_t(kPrimitiveBlocks) * definition.in);
  std::seed_seq seed(definition.name.begin(), definition.name.end());
  Random random(seed);
  random.discard(uint64_t(round) * 1000003);
  for (int block = 0; block < kPrimitiveBlocks; ++block)
    definition.draw(random, round, in.data() + size_t(block) * definition.in);
  return in;
}

std::string compare(const PrimitiveDefinition& definition, const std::vector<uint32_t>& in,
                    const std::vector<uint32_t>& got, const std::vector<uint32_t>& expected) {
  std::vector<uint32_t> unused(definition.out);
  std::vector<double> error(definition.out);
  for (int block = 0; block < kPrimitiveBlocks; ++block) {
    definition.expected(in.data() + size_t(block) * definition.in, unused.data(), error.data());
    for (int i = 0; i < definition.out; ++i) {
      const size_t at = size_t(block) * definition.out + i;
      const float a = std::bit_cast<float>(got[at]), b = std::bit_cast<float>(expected[at]);
      const bool equal = error[i] < 0 ? got[at] == expected[at]
                                      : a == b || (std::isnan(a) && std::isnan(b)) ||
                                            std::fabs(double(a) - double(b)) <= error[i];
      if (equal) continue;
      const std::string where = concat("block ", block, ", word ", i, ": ");
      if (error[i] < 0) return concat(where, got[at], ", expected ", expected[at]);
      return concat(where, a, ", expected ", b, " with an error of ", error[i]);
    }
  }
  return "";
}

}  // namespace tessera
