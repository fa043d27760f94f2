// A counter in global memory at which blocks arrive: atom.release.gpu.global.inc.u32 and
// fence.acq_rel.gpu. sm_70 and up. (PTX ISA, "atom", "membar/fence" and "Memory Consistency
// Model".)
//
//   arrive(counter, last)   the number of arrivals before this one, 0 to `last`, whose successor is
//                           0 again
//   fence_arrived()         what threads wrote or saw before they arrived, also what others of
//                           their blocks wrote before a barrier, is seen behind it by a thread
//                           whose arrival came later
#pragma once

#include "kernels/cuda/ptx/common.h"

namespace tessera::TESSERA_CUDA::ptx {

#ifdef TESSERA_GPU

__device__ __forceinline__ unsigned arrive(unsigned* counter, unsigned last) {
  unsigned before;
  asm volatile("atom.release.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(counter)), "r"(last)
               : "memory");
  return before;
}

__device__ __forceinline__ void fence_arrived() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

#else

inline unsigned arrive(unsigned* counter, unsigned last, Where where = Where::current()) {
  simt::release_fence();
  return simt::atomicInc(counter, last, where);
}

inline void fence_arrived() { simt::acquire_fence(); }

#endif

}  // namespace tessera::TESSERA_CUDA::ptx
