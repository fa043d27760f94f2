// The host model's device functions: conversions, NaN rules, bits, vector types.
#include <limits>
#include <vector>

#include "tests/simt_device.h"

namespace tessera::simt {

TEST_CASE("vector types have CUDA's sizes and alignments", "[simt]") {
  CHECK((sizeof(float2) == 8 && alignof(float2) == 8));
  CHECK((sizeof(float3) == 12 && alignof(float3) == 4));
  CHECK((sizeof(float4) == 16 && alignof(float4) == 16));
  CHECK((sizeof(uchar4) == 4 && alignof(uchar4) == 4));
  CHECK((sizeof(ushort2) == 4 && alignof(ushort2) == 4));
  CHECK((sizeof(short4) == 8 && alignof(short4) == 8));
  CHECK((sizeof(uint4) == 16 && alignof(uint4) == 16));
  CHECK((sizeof(double2) == 16 && alignof(double2) == 16));
  CHECK((sizeof(longlong2) == 16 && alignof(longlong2) == 16));
  CHECK((sizeof(double4) == 32 && alignof(double4) == 16));
  const int4 v = make_int4(1, 2, 3, 4);
  CHECK((v.x == 1 && v.y == 2 && v.z == 3 && v.w == 4));
  const uint3 u = make_uint3(5, 6, 7);
  CHECK((u.x == 5 && u.y == 6 && u.z == 7));
}

TEST_CASE("min and max give the number where one is a NaN", "[simt]") {
  const float nan = NAN;
  CHECK(fminf(nan, 2) == 2);
  CHECK(fmaxf(2, nan) == 2);
  CHECK(min(nan, 2.0f) == 2);
  CHECK(max(nan, 2.0f) == 2);
  CHECK(min(2.0f, nan) == 2);
  CHECK(max(2.0f, nan) == 2);
  CHECK(std::isnan(max(nan, nan)));
  CHECK(max(-1, 3) == 3);
  CHECK(min(4u, 3u) == 3);
}

TEST_CASE("conversions round, saturate, and make 0 of a NaN", "[simt]") {
  CHECK(__float2int_rn(2.5f) == 2);
  CHECK(__float2int_rn(3.5f) == 4);
  CHECK(__float2int_rn(-2.5f) == -2);
  CHECK(__float2int_rz(-2.9f) == -2);
  CHECK(__float2int_ru(2.1f) == 3);
  CHECK(__float2int_rd(-2.1f) == -3);
  CHECK(__float2int_rn(1e20f) == std::numeric_limits<int>::max());
  CHECK(__float2int_rn(0x1p31f) == std::numeric_limits<int>::max());
  CHECK(__float2int_rn(-0x1p31f) == std::numeric_limits<int>::min());
  CHECK(__float2int_rn(-INFINITY) == std::numeric_limits<int>::min());
  CHECK(__float2int_rn(NAN) == 0);
  CHECK(__float2uint_rn(-3) == 0);
  CHECK(__float2uint_rn(0x1.8p31f) == 0xC0000000u);
  CHECK(__float2uint_rz(1e10f) == ~0u);
  CHECK(__float2ll_rn(0x1p40f) == 1ll << 40);
  CHECK(__float2ll_rn(1e30f) == std::numeric_limits<long long>::max());
  CHECK(__int2float_rn(16777217) == 16777216.0f);
  CHECK(rintf(2.5f) == 2.0f);
  CHECK(__saturatef(-1) == 0);
  CHECK(__saturatef(0.25f) == 0.25f);
  CHECK(__saturatef(3) == 1);
  CHECK(__saturatef(NAN) == 0);
}

TEST_CASE("functions of floats", "[simt]") {
  const auto near = [](double x) { return Approx(x).epsilon(1e-6).margin(1e-7); };
  for (float x : {0.01f, 0.5f, 1.0f, 2.75f, 9.0f}) {
    INFO(x);
    const double d = x;
    CHECK(rsqrtf(x) == near(1 / std::sqrt(d)));
    CHECK(rcbrtf(x) == near(1 / std::cbrt(d)));
    CHECK(exp10f(x) == near(std::pow(10, d)));
    CHECK(erfcf(x) == near(std::erfc(d)));
    CHECK(tanhf(x) == near(std::tanh(d)));
    CHECK(normcdff(x) == near(0.5 * std::erfc(-d / std::sqrt(2.0))));
    CHECK(sinpif(x) == near(std::sin(M_PI * d)));
    CHECK(cospif(x) == near(std::cos(M_PI * d)));
    CHECK(__expf(x) == near(std::exp(d)));
    CHECK(__exp10f(x) == near(std::pow(10, d)));
    CHECK(__logf(x) == near(std::log(d)));
    CHECK(__log2f(x) == near(std::log2(d)));
    CHECK(__log10f(x) == near(std::log10(d)));
    CHECK(__sinf(x) == near(std::sin(d)));
    CHECK(__cosf(x) == near(std::cos(d)));
    CHECK(__tanf(x) == near(std::tan(d)));
    CHECK(__powf(x, 1.5f) == near(std::pow(d, 1.5)));
    float sine, cosine;
    __sincosf(x, &sine, &cosine);
    CHECK((sine == __sinf(x) && cosine == __cosf(x)));
    CHECK(__fdividef(3, x) == near(3 / d));
    CHECK(__frcp_rn(x) == 1 / x);
    CHECK(__fsqrt_rn(x) == std::sqrt(x));
  }
  CHECK(__fdividef(1, 0x1p127f) == 0);
}

namespace {

#ifdef __clang__
#define OPTIMIZED
#else
#define OPTIMIZED [[gnu::optimize("O2")]]  // as kernels are; with less, GCC fuses nothing
#endif

OPTIMIZED std::vector<float> rounded_twice(const volatile float& x) {
  return {__fmul_rn(x, x) - 1, __fadd_rn(x * x, -1), __fadd_rn(-1, x * x), __fsub_rn(x * x, 1),
          -__fsub_rn(1, x * x)};
}

}  // namespace

TEST_CASE("operations that round each for itself are not fused", "[simt]") {
  const volatile float x = 0x1.001p0f;  // its square is 1 + 2^-11 + 2^-24
  CHECK(fmaf(x, x, -1) == 0x1.0008p-11f);
  CHECK(__fmaf_rn(x, x, -1) == 0x1.0008p-11f);
  CHECK(rounded_twice(x) == std::vector<float>(5, 0x1p-11f));
}

TEST_CASE("functions of bits", "[simt]") {
  CHECK(__popc(0xF0F1) == 9);
  CHECK(__popcll(0xF0F1ull << 32) == 9);
  CHECK(__clz(0) == 32);
  CHECK(__clz(1) == 31);
  CHECK(__clz(-1) == 0);
  CHECK(__clzll(1) == 63);
  CHECK(__ffs(0) == 0);
  CHECK(__ffs(8) == 4);
  CHECK(__ffsll(1ll << 40) == 41);
  CHECK(__brev(1) == 0x80000000u);
  CHECK(__brev(0x12345678) == 0x1E6A2C48u);
  CHECK(__brevll(1) == 1ull << 63);
  CHECK(__brevll(0x12345678ull << 32) == 0x1E6A2C48u);
  CHECK(__funnelshift_l(0x80000000u, 1, 1) == 3);
  CHECK(__funnelshift_l(5, 7, 32) == 7);
  CHECK(__funnelshift_r(2, 1, 1) == 0x80000001u);
  CHECK(__funnelshift_r(5, 7, 32) == 5);
  CHECK(__mulhi(-1, 1) == -1);
  CHECK(__mulhi(1 << 30, 1 << 30) == 1 << 28);
  CHECK(__umulhi(~0u, ~0u) == 0xFFFFFFFEu);
  CHECK(__umul64hi(1ull << 63, 6) == 3);
  CHECK(__float_as_uint(1.0f) == 0x3F800000u);
  CHECK(__uint_as_float(0x3F800000u) == 1.0f);
  CHECK(__float_as_int(-0.0f) == std::numeric_limits<int>::min());
  CHECK(__int_as_float(0x40000000) == 2.0f);
}

}  // namespace tessera::simt
