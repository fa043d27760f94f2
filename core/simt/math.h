// Device functions that the host's <cmath> lacks or defines differently, and vector accesses. The
// fast intrinsics (__expf) are exact here: a GPU's are not, which tests on one have to allow for.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "core/simt/trace.h"

namespace tessera::simt {

using std::max;
using std::min;
// CUDA's max and min of floats: the other one where one is a NaN.
inline float max(float a, float b) { return ::fmaxf(a, b); }
inline float min(float a, float b) { return ::fminf(a, b); }

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float rcbrtf(float x) { return 1.0f / std::cbrt(x); }
inline float exp10f(float x) { return float(std::pow(10.0, double(x))); }
inline float normcdff(float x) { return float(0.5 * std::erfc(-double(x) * M_SQRT1_2)); }
inline float sinpif(float x) { return float(std::sin(M_PI * std::fmod(double(x), 2.0))); }
inline float cospif(float x) { return float(std::cos(M_PI * std::fmod(double(x), 2.0))); }
inline void sincosf(float x, float* sine, float* cosine) {
  *sine = std::sin(x);
  *cosine = std::cos(x);
}
inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return exp10f(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __log10f(float x) { return std::log10(x); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __tanf(float x) { return std::tan(x); }
inline void __sincosf(float x, float* sine, float* cosine) { sincosf(x, sine, cosine); }
inline float __powf(float x, float y) { return std::pow(x, y); }
// 0 for 2^126 < |y|, as documented.
inline float __fdividef(float x, float y) {
  const bool huge = std::fabs(y) > 0x1p126f && !std::isinf(y);
  return huge ? (std::isinf(x) ? NAN : 0.0f) : x / y;
}
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }  // NaN: 0

// Never contracted to fused operations: the compiler does not know what a rounded() number is.
inline float rounded(float x) {
  asm volatile("" : "+x"(x));
  return x;
}
inline float __fadd_rn(float x, float y) { return rounded(x) + rounded(y); }
inline float __fsub_rn(float x, float y) { return rounded(x) - rounded(y); }
inline float __fmul_rn(float x, float y) { return rounded(x * y); }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }

// Of a float that is an integer: the nearest that T has, 0 of a NaN (PTX ISA, cvt).
template <class T>
T saturated(float x) {
  if (std::isnan(x)) return 0;
  const double limit = std::ldexp(1.0, int(sizeof(T)) * 8 - (std::is_signed_v<T> ? 1 : 0));
  if (double(x) >= limit) return std::numeric_limits<T>::max();
  if (double(x) < (std::is_signed_v<T> ? -limit : 0.0)) return std::numeric_limits<T>::min();
  return T(x);
}
inline int __float2int_rn(float x) { return saturated<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return saturated<int>(std::trunc(x)); }
inline int __float2int_ru(float x) { return saturated<int>(std::ceil(x)); }
inline int __float2int_rd(float x) { return saturated<int>(std::floor(x)); }
inline unsigned __float2uint_rn(float x) { return saturated<unsigned>(std::nearbyint(x)); }
inline unsigned __float2uint_rz(float x) { return saturated<unsigned>(std::trunc(x)); }
inline long long __float2ll_rn(float x) { return saturated<long long>(std::nearbyint(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }  // from 1; 0 of 0
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  x = (x >> 1 & 0x55555555) | (x & 0x55555555) << 1;
  x = (x >> 2 & 0x33333333) | (x & 0x33333333) << 2;
  x = (x >> 4 & 0x0F0F0F0F) | (x & 0x0F0F0F0F) << 4;
  return __builtin_bswap32(x);
}
inline unsigned long long __brevll(unsigned long long x) {
  return uint64_t{__brev(unsigned(x))} << 32 | __brev(unsigned(x >> 32));
}
// The upper (left) or lower (right) half of hi:lo shifted by shift % 32.
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned shift) {
  return unsigned((uint64_t{hi} << 32 | lo) << shift % 32 >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned shift) {
  return unsigned((uint64_t{hi} << 32 | lo) >> shift % 32);
}
inline int __mulhi(int a, int b) { return int(int64_t{a} * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t{a} * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<unsigned long long>(Wide(a) * b >> 64);
}

inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }

// A vector access, which the hardware demands to be aligned as the type is.
template <class V>
V load_vector(const void* pointer, Where where = Where::current()) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignof(V))
    fault(concat("misaligned load of ", sizeof(V), " bytes at ", pointer), where);
  count_access(kLoaded, pointer, sizeof(V));
  V value;
  std::memcpy(&value, pointer, sizeof(V));
  return value;
}
template <class V>
void store_vector(void* pointer, const V& value, Where where = Where::current()) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignof(V))
    fault(concat("misaligned store of ", sizeof(V), " bytes at ", pointer), where);
  count_access(kStored, pointer, sizeof(V));
  std::memcpy(pointer, &value, sizeof(V));
}

// Loads and stores with cache hints, which mean nothing here.
template <class T>
T __ldg(const T* pointer, Where where = Where::current()) {
  return load_vector<T>(pointer, where);
}
template <class T>
T __ldcg(const T* pointer, Where where = Where::current()) {
  return load_vector<T>(pointer, where);
}
template <class T>
T __ldcs(const T* pointer, Where where = Where::current()) {
  return load_vector<T>(pointer, where);
}
template <class T>
void __stcg(T* pointer, std::type_identity_t<T> value, Where where = Where::current()) {
  store_vector(pointer, value, where);
}
template <class T>
void __stcs(T* pointer, std::type_identity_t<T> value, Where where = Where::current()) {
  store_vector(pointer, value, where);
}

inline void __nanosleep(unsigned, Where where = Where::current()) {
  yield_thread("__nanosleep", where);
}
[[noreturn]] inline void __trap(Where where = Where::current()) { fault("__trap", where); }

}  // namespace tessera::simt
