// What the families of instructions share. Every file of this folder holds one family: the
// device's PTX and, for the host model, an emulation after the PTX ISA. A profile or architecture
// that lacks an instruction: a fault on the host, a trap on the device.
#pragma once

#include "core/cuda/cuda.h"

namespace tessera::TESSERA_CUDA::ptx {

#ifdef TESSERA_GPU

// What an instruction that works on shared memory takes for an address.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}

#else

// Throws unless `bytes` at `pointer` are shared memory of this block and aligned to `alignment`.
inline void check_shared(const void* pointer, size_t bytes, size_t alignment, const char* name,
                         Where where) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignment)
    fault(concat("misaligned address: ", name, " at ", pointer, ", not a multiple of ", alignment),
          where);
  if (!is_shared(pointer, bytes))
    fault(concat(name, " at ", pointer, ", which is not in this block's shared memory"), where);
}

// A rendezvous of all lanes, for instructions that a whole warp executes (.sync.aligned).
inline void whole_warp(void* operands, Combine combine, const char* name, Where where) {
  if (current_grid().block.count() < (self().warp() + 1) * 32)
    fault(concat(name, " in a warp of fewer than 32 threads"), where);
  warp_rendezvous(0xFFFFFFFF, operands, combine, name, where);
}

#endif

}  // namespace tessera::TESSERA_CUDA::ptx
