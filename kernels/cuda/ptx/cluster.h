// Clusters: blocks next to each other that run at the same time (Launch::cluster).
//
//   cluster_sync()   waits until all threads of the cluster have come. What they wrote before, to
//                    global memory, too, is seen behind it (PTX ISA, "barrier.cluster": arrive
//                    releases and wait acquires unless told otherwise). Whole warps come. sm_90 and
//                    up.
#pragma once

#include "kernels/cuda/ptx/common.h"

namespace tessera::TESSERA_CUDA::ptx {

#ifdef TESSERA_GPU

__device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
#else
  __trap();
#endif
}

#else

inline void cluster_sync(Where where = Where::current()) {
  require(90, "barrier.cluster", where);
  simt::cluster_sync(where);
}

#endif

}  // namespace tessera::TESSERA_CUDA::ptx
