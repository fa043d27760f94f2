// 2^x and 1/x by the special function unit, one instruction each, which a multiprocessor begins for
// 16 lanes a clock. Off by a few units in the last place; subnormal numbers, in and out, are 0.
// (PTX ISA, "ex2" and "rcp", .approx.ftz.)
#pragma once

#include <cmath>

#include "kernels/cuda/ptx/common.h"

namespace tessera::TESSERA_CUDA::ptx {

#ifdef TESSERA_GPU

__device__ __forceinline__ float approx_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ float approx_reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

#else

inline float flushed(float x) {
  return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x;  // NaN stays
}
inline float approx_exp2(float x) { return flushed(std::exp2(flushed(x))); }
inline float approx_reciprocal(float x) { return flushed(1.0f / flushed(x)); }

#endif

}  // namespace tessera::TESSERA_CUDA::ptx
