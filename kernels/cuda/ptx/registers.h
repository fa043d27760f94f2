// setmaxnreg: a warpgroup gives registers back, or takes some that others gave back and waits until
// there are enough. A kernel that does either has launch bounds that say how many a thread begins
// with. n: of a thread from here on, a multiple of 8, 24 to 256. Only sm_90a. (PTX ISA,
// "setmaxnreg".)
#pragma once

#include "kernels/cuda/ptx/common.h"

namespace tessera::TESSERA_CUDA::ptx {

#ifdef TESSERA_GPU

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define TESSERA_REGISTERS(...) asm volatile(__VA_ARGS__)
#else
#define TESSERA_REGISTERS(...) __trap()
#endif

template <int n>
__device__ __forceinline__ void fewer_registers() {
  static_assert(n % 8 == 0 && n >= 24 && n <= 256);
  TESSERA_REGISTERS("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n));
}
template <int n>
__device__ __forceinline__ void more_registers() {
  static_assert(n % 8 == 0 && n >= 24 && n <= 256);
  TESSERA_REGISTERS("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n));
}

#undef TESSERA_REGISTERS

#else

// The host model has registers for all.
template <int n>
void fewer_registers(Where where = Where::current()) {
  require(90, "setmaxnreg", where);
}
template <int n>
void more_registers(Where where = Where::current()) {
  require(90, "setmaxnreg", where);
}

#endif

}  // namespace tessera::TESSERA_CUDA::ptx
