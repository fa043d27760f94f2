// Barriers 1 to 15 of a block, for part of its threads: `threads` (a multiple of 32) counts those
// that wait and those that only arrive. Whole warps come. 0 is __syncthreads. (PTX ISA, "bar",
// "barrier".)
#pragma once

#include "kernels/cuda/ptx/common.h"

namespace tessera::TESSERA_CUDA::ptx {

#ifdef TESSERA_GPU

__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

#else

inline void named_barrier_sync(int id, int threads, Where where = Where::current()) {
  block_barrier(id, threads, 0, "bar.sync", where);
}
inline void named_barrier_arrive(int id, int threads, Where where = Where::current()) {
  block_arrive(id, threads, "bar.arrive", where);
}

#endif

}  // namespace tessera::TESSERA_CUDA::ptx
