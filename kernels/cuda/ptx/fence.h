// fence.proxy.async: bulk copies and wgmma see shared memory by another way than loads and stores;
// after this fence they see what the thread wrote before it. sm_90 and up. (PTX ISA,
// "membar/fence", "Async proxy".) __threadfence and its kin are CUDA's own. The host model notes
// which bytes cp.async has written, and finds them unfenced in wgmma; plain stores it does not see.
#pragma once

#include "kernels/cuda/ptx/common.h"

namespace tessera::TESSERA_CUDA::ptx {

#ifdef TESSERA_GPU

__device__ __forceinline__ void fence_proxy_async() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  __trap();
#endif
}

#else

inline void fence_proxy_async(Where where = Where::current()) {
  require(90, "fence.proxy.async", where);
  fence_copies();
}

#endif

}  // namespace tessera::TESSERA_CUDA::ptx
