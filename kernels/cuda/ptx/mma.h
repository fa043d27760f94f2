// mma.sync: a warp multiplies small matrices, D = A B + D, on tensor cores. A [16,k] lies in its
// registers by rows, B [k,8] by columns, D [16,8]. Lane l, with g = l / 4 and t = l % 4, holds
//   16-bit, k = 16: a[0] = A[g][2t..], a[1] = A[g+8][2t..], a[2] = A[g][2t+8..],
//                   a[3] = A[g+8][2t+8..], b[0] = B[2t..][g], b[1] = B[2t+8..][g];
//                   two neighbours in one register, the first in the lower half
//   tf32, k = 8:    a[0] = A[g][t], a[1] = A[g+8][t], a[2] = A[g][t+4], a[3] = A[g+8][t+4],
//                   b[0] = B[t][g], b[1] = B[t+4][g]
//   both:           d[0..1] = D[g][2t..], d[2..3] = D[g+8][2t..]
// (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and "... mma.m16n8k8").
// Products are exact; tensor cores align and truncate what they add, the emulation rounds.
#pragma once

#include <type_traits>

#include "core/dtype.h"
#include "kernels/cuda/ptx/common.h"

namespace tessera::TESSERA_CUDA::ptx {

struct f16 {
  uint16_t bits;
};

#ifdef TESSERA_GPU

// T: bf16 or f16. sm_80 and up.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
  if constexpr (std::is_same_v<T, bf16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

// Operands are floats whose lower 13 bits are ignored: round them with to_tf32. sm_80 and up.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

// To the nearest tf32 (10 bits of mantissa), ties away from zero. sm_80 and up.
__device__ __forceinline__ uint32_t to_tf32(float x) {
#if __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#else
  __trap();
  return 0;
#endif
}

#else

// One lane's operands.
struct MmaOperands {
  float* d;
  const uint32_t *a, *b;
};

inline float element(bf16 x) { return to_float(x); }
// What was never written (core/simt/runner.h) stays a signalling NaN.
inline float element(f16 x) {
  const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  const uint32_t sign = uint32_t{x.bits} >> 15 << 31;
  if (x.bits == 0x7FBF) return __uint_as_float(0x7FBF0000);
  if (exponent == 31) return __uint_as_float(sign | 0x7F800000 | uint32_t(mantissa) << 13);
  const float size = exponent ? std::ldexp(float(mantissa + 1024), exponent - 25)
                              : std::ldexp(float(mantissa), -24);
  return sign ? -size : size;
}
template <class T>
float low(uint32_t pair) {
  return element(T{uint16_t(pair)});
}
template <class T>
float high(uint32_t pair) {
  return element(T{uint16_t(pair >> 16)});
}

// d += a b, with d in the lanes' registers.
template <int k>
void multiply_tile(void* const* lanes, const float (&a)[16][k], const float (&b)[k][8]) {
  using Row = float __attribute__((vector_size(32)));
  count(kProducts, 1);
  count(kMultiplyAdds, 16 * 8 * k);
  union {
    float d[16][8];
    Row rows[16];
  };
  for (int lane = 0; lane < 32; ++lane) {
    const float* from = static_cast<MmaOperands*>(lanes[lane])->d;
    std::memcpy(d[lane / 4] + lane % 4 * 2, from, 8);
    std::memcpy(d[lane / 4 + 8] + lane % 4 * 2, from + 2, 8);
  }
  for (int i = 0; i < k; ++i) {
    Row factor;
    std::memcpy(&factor, b[i], sizeof factor);
#pragma GCC unroll 16
    for (int row = 0; row < 16; ++row) rows[row] += a[row][i] * factor;
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* to = static_cast<MmaOperands*>(lanes[lane])->d;
    std::memcpy(to, d[lane / 4] + lane % 4 * 2, 8);
    std::memcpy(to + 2, d[lane / 4 + 8] + lane % 4 * 2, 8);
  }
}

template <class T>
void multiply_16bit(void* const* lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const MmaOperands& mine = *static_cast<MmaOperands*>(lanes[lane]);
    const int g = lane / 4, k = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      a[g + i % 2 * 8][k + i / 2 * 8] = low<T>(mine.a[i]);
      a[g + i % 2 * 8][k + i / 2 * 8 + 1] = high<T>(mine.a[i]);
    }
    for (int i = 0; i < 2; ++i) {
      b[k + i * 8][g] = low<T>(mine.b[i]);
      b[k + i * 8 + 1][g] = high<T>(mine.b[i]);
    }
  }
  multiply_tile(lanes, a, b);
}

inline void multiply_tf32(void* const* lanes) {
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const MmaOperands& mine = *static_cast<MmaOperands*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i)
      a[g + i % 2 * 8][t + i / 2 * 4] = __uint_as_float(mine.a[i] & 0xFFFFE000);
    for (int i = 0; i < 2; ++i) b[t + i * 4][g] = __uint_as_float(mine.b[i] & 0xFFFFE000);
  }
  multiply_tile(lanes, a, b);
}

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  Where where = Where::current()) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
  constexpr const char* name =
      std::is_same_v<T, bf16> ? "mma.sync.m16n8k16.bf16" : "mma.sync.m16n8k16.f16";
  require(80, name, where);
  MmaOperands mine{d, a, b};
  whole_warp(&mine, multiply_16bit<T>, name, where);
}

inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             Where where = Where::current()) {
  require(80, "mma.sync.m16n8k8.tf32", where);
  MmaOperands mine{d, a, b};
  whole_warp(&mine, multiply_tf32, "mma.sync.m16n8k8.tf32", where);
}

inline uint32_t to_tf32(float x, Where where = Where::current()) {
  require(80, "cvt.rna.tf32.f32", where);
  const uint32_t bits = __float_as_uint(x);
  // An infinity, or a NaN, whose lower 13 bits are lost: one that has no others (no arithmetic
  // makes such) becomes an infinity, as on an H100.
  if ((bits & 0x7F800000) == 0x7F800000) return bits & 0xFFFFE000;
  return (bits + 0x1000) & 0xFFFFE000;
}

#endif

}  // namespace tessera::TESSERA_CUDA::ptx
