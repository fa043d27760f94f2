// Whether this program has kernels that run on the present GPU.
#include "core/cuda/probe.h"

#include <cuda_runtime.h>

namespace tessera::gpu {
namespace {

__global__ void probe_kernel() {}

}  // namespace

bool has_code_for_this_gpu() {
  cudaFuncAttributes attributes;
  const bool found = cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess;
  if (!found) cudaGetLastError();  // it would be reported once more by a later call
  return found;
}

}  // namespace tessera::gpu
