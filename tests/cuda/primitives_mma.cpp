// What mma.sync computes, in plain loops: primitives.h.
#include <cmath>

#include "core/check.h"
#include "core/dtype.h"
#include "tests/cuda/primitives.h"

namespace tessera {
namespace {

// IEEE binary16.
float half_to_float(uint32_t bits) {
  const int exponent = int(bits >> 10 & 31), mantissa = int(bits & 1023);
  if (exponent == 31) return mantissa ? NAN : bits >> 15 & 1 ? -INFINITY : INFINITY;
  const float size = exponent ? std::ldexp(1 + float(mantissa) / 1024, exponent - 15)
                              : std::ldexp(float(mantissa), -24);
  return bits >> 15 & 1 ? -size : size;
}

// An integer of at most 11 bits; such are exact.
uint32_t integer_to_half(int x) {
  if (x == 0) return 0;
  const int size = std::abs(x), exponent = std::ilogb(float(size));
  return (x < 0 ? 0x8000u : 0u) | uint32_t(exponent + 15) << 10 |
         uint32_t((size << 10 >> exponent) & 1023);
}

// An element type of A and B: how many make a word, and how they are read and written.
struct Elements {
  const char* name;
  int in_word;
  float (*value)(uint32_t bits);
  uint32_t (*of_integer)(int x);
  uint32_t (*random)(Random& random);
  uint32_t denormal, infinity, nan;  // the bits that a denormal number may have, and two patterns
  uint32_t huge;                     // added to bits: times 2^100, or nothing
};

float normal(Random& random) { return std::normal_distribution<float>()(random); }

const Elements kBf16{"mma.m16n8k16.bf16",
                     2,
                     [](uint32_t bits) { return to_float(bf16{uint16_t(bits)}); },
                     [](int x) { return uint32_t{to_bf16(float(x)).bits}; },
                     [](Random& random) { return uint32_t{to_bf16(normal(random)).bits}; },
                     0x807F,
                     0x7F80,
                     0x7FC0,
                     100 << 7};
// Half of the numbers have exponents from the whole range, denormals among them.
const Elements kF16{"mma.m16n8k16.f16",
                    2,
                    half_to_float,
                    integer_to_half,
                    [](Random& random) {
                      const uint32_t bits = uint32_t(random()) & 0xFFFF;
                      return random() % 2 ? bits & 0xBFFF : (bits & 0x83FF) | 0x3C00;
                    },
                    0x83FF,
                    0x7C00,
                    0x7E00,
                    0};
// The lower 13 bits are there, and are ignored.
const Elements kTf32{"mma.m16n8k8.tf32",
                     1,
                     [](uint32_t bits) { return std::bit_cast<float>(bits & 0xFFFFE000); },
                     [](int x) { return std::bit_cast<uint32_t>(float(x)); },
                     [](Random& random) { return std::bit_cast<uint32_t>(normal(random)); },
                     0x807FFFFF,
                     0x7F800000,
                     0x7FC00000,
                     100 << 23};

// A tile has eight words per row of A [16] and column of B [8], then D [16,8].
constexpr int kWordsOfA = 16 * 8, kWordsOfB = 8 * 8, kTile = 16 * 8;

// Row 3 of A is denormal, and its sums are not: B is huge, D nothing.
void make_denormal(const Elements& elements, uint32_t* in) {
  const auto of_all = [&](uint32_t bits) {
    return elements.in_word == 2 ? bits | bits << 16 : bits;
  };
  for (int i = 0; i < 8; ++i) {
    in[3 * 8 + i] &= of_all(elements.denormal);
    in[kWordsOfA + kWordsOfB + 3 * 8 + i] = 0;
  }
  for (int i = 0; i < kWordsOfB; ++i) in[kWordsOfA + i] += of_all(elements.huge);
}

// Even rounds draw integers of -4 .. 4, whose sums of products are exact; round 2 has D large.
// Round 5 has denormal numbers, round 7 an infinity in row 2 of A and a NaN in row 9.
void draw_tile(const Elements& elements, Random& random, int round, uint32_t* in) {
  const bool integers = round % 2 == 0;
  const auto integer = [&] { return int(random() % 9) - 4; };
  for (int i = 0; i < kWordsOfA + kWordsOfB; ++i) {
    in[i] = 0;
    for (int j = 0; j < elements.in_word; ++j)
      in[i] |= (integers ? elements.of_integer(integer()) : elements.random(random)) << 16 * j;
  }
  for (int i = 0; i < kTile; ++i) {
    const float size = round == 2 ? 4096 : round == 3 ? 1e6f : 1;
    in[kWordsOfA + kWordsOfB + i] =
        std::bit_cast<uint32_t>(size * (integers ? float(integer()) : normal(random)));
  }
  if (round == 5) make_denormal(elements, in);
  if (round == 7) in[2 * 8 + 5] = elements.infinity, in[9 * 8 + 1] = elements.nan;
}

// The error that tensor cores may make: 32 * 2^-23 * max(|d|, |a b|); none with integers and where
// the sum is not finite.
void multiply_tile(const Elements& elements, const uint32_t* in, uint32_t* out, double* error) {
  const auto value = [&](const uint32_t* words, int line, int k) {
    const uint32_t word = words[line * 8 + k / elements.in_word];
    return double(elements.value(elements.in_word == 2 ? word >> k % 2 * 16 & 0xFFFF : word));
  };
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      const int at = row * 8 + column;
      double sum = std::bit_cast<float>(in[kWordsOfA + kWordsOfB + at]);
      double largest = std::fabs(sum);
      bool integers = sum == std::rint(sum) && largest < (1 << 20);
      for (int k = 0; k < 8 * elements.in_word; ++k) {
        const double a = value(in, row, k), b = value(in + kWordsOfA, column, k);
        sum += a * b;
        largest = std::max(largest, std::fabs(a * b));
        integers &= a == std::rint(a) && b == std::rint(b) && std::fabs(a * b) <= 16;
      }
      out[at] = std::bit_cast<uint32_t>(float(sum));
      error[at] = integers || !std::isfinite(sum) ? 0 : std::ldexp(32 * largest, -23);
    }
}

// wgmma: A [64,16] by rows, B [16,N] by columns, both in pairs of bf16, D [64,N].
void draw_group(int N, Random& random, int round, uint32_t* in) {
  const bool integers = round % 2 == 0;
  const auto integer = [&] { return int(random() % 9) - 4; };
  const auto bits = [&] { return integers ? kBf16.of_integer(integer()) : kBf16.random(random); };
  const int pairs = (64 + N) * 8;
  for (int i = 0; i < pairs; ++i) {
    const uint32_t low = bits();
    in[i] = low | bits() << 16;
  }
  for (int i = 0; i < 64 * N; ++i)
    in[pairs + i] = std::bit_cast<uint32_t>(integers ? float(integer()) : normal(random));
}
void multiply_group(int N, const uint32_t* in, uint32_t* out, double* error) {
  const auto value = [&](int line, int k) {
    return double(kBf16.value(in[line * 8 + k / 2] >> k % 2 * 16 & 0xFFFF));
  };
  for (int row = 0; row < 64; ++row)
    for (int column = 0; column < N; ++column) {
      const int at = row * N + column;
      double sum = std::bit_cast<float>(in[(64 + N) * 8 + at]), largest = std::fabs(sum);
      bool integers = sum == std::rint(sum);
      for (int k = 0; k < 16; ++k) {
        const double a = value(row, k), b = value(64 + column, k);
        sum += a * b;
        largest = std::max(largest, std::fabs(a * b));
        integers &= a == std::rint(a) && b == std::rint(b);
      }
      out[at] = std::bit_cast<uint32_t>(float(sum));
      error[at] = integers ? 0 : std::ldexp(32 * largest, -23);
    }
}

}  // namespace

std::vector<PrimitiveDefinition> mma_definitions() {
  std::vector<PrimitiveDefinition> all;
  for (const Elements* one : {&kBf16, &kF16, &kTf32})
    all.push_back(
        {one->name, 80, kWordsOfA + kWordsOfB + kTile, kTile,
         [one](Random& random, int round, uint32_t* in) { draw_tile(*one, random, round, in); },
         [one](const uint32_t* in, uint32_t* out, double* error) {
           multiply_tile(*one, in, out, error);
         }});
  for (const int N : {64, 128})
    for (const char* operands :
         {"plain, 64", "plain, 128 across", "plain, plain across", "64, 64", "64, 128 across",
          "registers, 64", "registers, 128 across", "registers, plain across", "64 from line 3, 64",
          "registers, 128 across from line 5"}) {
      all.push_back(
          {concat("wgmma.n", N, " ", operands), 90, (64 + N) * 8 + 64 * N, 64 * N,
           [N](Random& random, int round, uint32_t* in) { draw_group(N, random, round, in); },
           [N](const uint32_t* in, uint32_t* out, double* error) {
             multiply_group(N, in, out, error);
           },
           90});
    }
  return all;
}

}  // namespace tessera
