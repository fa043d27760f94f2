// griddepcontrol: a launch may begin while the kernel in front of it in the stream comes to its
// end, and what reads that one's results waits (programmatic dependent launch; PTX ISA,
// "griddepcontrol"). sm_90 and up; below, and in a launch that does not overlap, there is nothing
// to wait for.
//
//   begin_kernel()  first of all in every kernel, for launch_next(): waits until the kernels in
//                   front have ended and their writes are seen
//
// Since every kernel waits before it reads or writes anything, the one behind it, which waits for
// the end of this one only, comes after all that were before. No kernel lets the next one in early
// (griddepcontrol.launch_dependents): its blocks gather on the multiprocessors that are done first
// (docs/worklog.md). On the host model kernels of a stream run one after the other, and a thread
// that ends without begin_kernel() in a launch that may overlap is a fault.
#pragma once

#include "kernels/cuda/ptx/common.h"

namespace tessera::TESSERA_CUDA::ptx {

#ifdef TESSERA_GPU

__device__ __forceinline__ void begin_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#else

inline void begin_kernel() { note_begun(); }

#endif

}  // namespace tessera::TESSERA_CUDA::ptx
