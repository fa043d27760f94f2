// Which kernels of this program run on the present GPU.
#include "core/cuda/probe.h"

#include "core/cuda/cuda.h"

namespace tessera::gpu {
namespace {

__global__ void probe_kernel() {}

}  // namespace

int code_for_this_gpu() {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (error != cudaErrorNoKernelImageForDevice && error != cudaErrorInvalidDeviceFunction) {
    CUDA_CHECK(error);
    return attributes.ptxVersion;
  }
  cudaGetLastError();  // it would be reported once more by a later call
  return 0;
}

}  // namespace tessera::gpu
