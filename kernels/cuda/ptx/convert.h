// float -> bf16, to the nearest, ties to even: one instruction from sm_80 on, core/dtype.h's bits
// elsewhere. A NaN gives a NaN, which one is not said. (PTX ISA, "cvt".)
#pragma once

#include "core/dtype.h"
#include "kernels/cuda/ptx/common.h"

namespace tessera::TESSERA_CUDA::ptx {

#ifdef TESSERA_GPU

__device__ __forceinline__ bf16 convert_bf16(float x) {
#if __CUDA_ARCH__ >= 800
  bf16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
#else
  return to_bf16(x);
#endif
}

// Two of them in one register, `low` in the lower half: neighbours in memory, the first low.
__device__ __forceinline__ uint32_t convert_bf16x2(float low, float high) {
#if __CUDA_ARCH__ >= 800
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
#else
  return to_bf16(low).bits | uint32_t{to_bf16(high).bits} << 16;
#endif
}

#else

// The comparison notices a value that was never written, as arithmetic does.
inline bf16 convert_bf16(float x) { return x == x ? to_bf16(x) : bf16{0x7FFF}; }
inline uint32_t convert_bf16x2(float low, float high) {
  return convert_bf16(low).bits | uint32_t{convert_bf16(high).bits} << 16;
}

#endif

}  // namespace tessera::TESSERA_CUDA::ptx
