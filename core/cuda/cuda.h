// CUDA, or its host model: what every .cu file and the runtime include in place of cuda_runtime.h.
// The same sources are compiled twice: for a GPU into namespace gpu, for the host into namespace
// simt (TESSERA_CUDA names it), where the host model's versions of CUDA's names are.
#pragma once

#include "core/check.h"

#ifdef TESSERA_GPU
#include <cuda_runtime.h>

#include "core/environment.h"

#define TESSERA_CUDA gpu
#else
#include "core/simt/atomic.h"
#include "core/simt/launch.h"
#include "core/simt/math.h"
#include "core/simt/warp.h"
#define TESSERA_CUDA simt
#endif

namespace tessera::TESSERA_CUDA {

[[noreturn]] inline void throw_cuda_error(cudaError_t error, const char* call, const char* file,
                                          int line) {
  // A launch may need memory, too: for its code, when it is loaded.
  if (error == cudaErrorMemoryAllocation)
    throw OutOfMemory(concat("out of memory in CUDA [", call, "] (", file, ":", line, ")"));
  throw_error(call, file, line, concat("CUDA: ", cudaGetErrorString(error)));
}

}  // namespace tessera::TESSERA_CUDA

#define CUDA_CHECK(call)                                                                   \
  do {                                                                                     \
    if (const auto error_of_call = (call))                                                 \
      ::tessera::TESSERA_CUDA::throw_cuda_error(error_of_call, #call, __FILE__, __LINE__); \
  } while (false)

#ifdef TESSERA_GPU
namespace tessera::gpu {

struct Launch {
  cudaStream_t stream;
  dim3 grid, block;
  size_t shared_bytes = 0;
  unsigned cluster = 0;   // so many neighbours in x live at once (kernels/cuda/ptx/cluster.h)
  bool overlaps = false;  // see launch_next()
};

// Whether launches may overlap: not where TESSERA_OVERLAP=0 is set.
inline bool overlap_wanted() {
  static const bool wanted = is_wanted("TESSERA_OVERLAP");
  return wanted;
}

// Whether a kernel's code waits for the launch before it: that for 9.0 and up.
inline bool waits_itself(const void* kernel) {
  cudaFuncAttributes code;
  CUDA_CHECK(cudaFuncGetAttributes(&code, kernel));
  return code.ptxVersion >= 90;
}

// Lets launches of a kernel ask for as much shared memory as a block can have. Once and for all:
// recorded launches may ask for other sizes than the last one.
inline bool open_shared_memory(const void* kernel) {
  int most = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  return true;
}

// Whether the stream's next launch has one other to overlap with. Where streams have been joined in
// a recording it follows several, and whether a stream counts as joined whose last launch may be
// overlapped is not documented (904, "unjoined work", otherwise). Nor is what becomes there of a
// launch behind a copy, where a graph allows no such edge.
inline bool follows_one(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaGraphNodeType before = cudaGraphNodeTypeEmpty;
#if CUDART_VERSION >= 12030
  const cudaGraphNode_t* nodes = nullptr;
  const cudaGraphEdgeData* edges = nullptr;  // else edges that are not plain are an error
  size_t count = 0;
#if CUDART_VERSION >= 13000
  constexpr auto info = cudaStreamGetCaptureInfo;
#else
  constexpr auto info = cudaStreamGetCaptureInfo_v3;
#endif
  CUDA_CHECK(info(stream, &status, nullptr, nullptr, &nodes, &edges, &count));
  if (status == cudaStreamCaptureStatusActive && count == 1)
    CUDA_CHECK(cudaGraphNodeGetType(nodes[0], &before));
#else
  CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
#endif
  return status == cudaStreamCaptureStatusNone || before == cudaGraphNodeTypeKernel;
}

template <auto Kernel>
struct Launcher;

template <class... P, void (*Kernel)(P...)>
struct Launcher<Kernel> {
  static void run(const Launch& launch, P... p) {
    const auto kernel = reinterpret_cast<const void*>(Kernel);
    static const bool may_overlap = waits_itself(kernel);
    if (launch.shared_bytes > 48 * 1024) {  // more has to be asked for
      static const bool opened = open_shared_memory(kernel);
      static_cast<void>(opened);
    }
    cudaLaunchConfig_t config{};
    config.gridDim = launch.grid;
    config.blockDim = launch.block;
    config.dynamicSmemBytes = launch.shared_bytes;
    config.stream = launch.stream;
    cudaLaunchAttribute attributes[2] = {};
    config.attrs = attributes;
    if (launch.overlaps && may_overlap && overlap_wanted() && follows_one(launch.stream)) {
      auto& overlap = attributes[config.numAttrs++];
      overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      overlap.val.programmaticStreamSerializationAllowed = 1;
    }
    if (launch.cluster > 1) {
      auto& cluster = attributes[config.numAttrs++];
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim = {launch.cluster, 1, 1};
    }
    CUDA_CHECK(cudaLaunchKernelEx(&config, Kernel, p...));
  }
};

// launch<kernel>({stream, grid, block, shared_bytes}, arguments...)
template <auto Kernel, class... Arguments>
void launch(const Launch& launch, const Arguments&... arguments) {
  Launcher<Kernel>::run(launch, arguments...);
}

#ifdef __CUDACC__
// Dynamic shared memory as one struct.
template <class T>
__device__ __forceinline__ T& shared_memory() {
  extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];
  return *reinterpret_cast<T*>(dynamic_shared_memory);
}

// Vector accesses; the address must be a multiple of the vector's size.
template <class V>
__device__ __forceinline__ V load_vector(const void* pointer) {
  return *static_cast<const V*>(pointer);
}
template <class V>
__device__ __forceinline__ void store_vector(void* pointer, const V& value) {
  *static_cast<V*>(pointer) = value;
}
#endif

}  // namespace tessera::gpu
#endif

namespace tessera::TESSERA_CUDA {

// launch() of a kernel that waits for its predecessor itself (kernels/cuda/ptx/grid_dependency.h)
// and so may begin before that one has ended, in a recorded stream, too, but where it has several.
template <auto Kernel, class... Arguments>
void launch_next(Launch how, const Arguments&... arguments) {
  how.overlaps = true;
  launch<Kernel>(how, arguments...);
}

}  // namespace tessera::TESSERA_CUDA
