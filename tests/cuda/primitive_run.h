// How a primitive's kernel runs: included by the sources of primitives.h's kernels.
#pragma once

#include "core/cuda/cuda.h"
#include "tests/cuda/primitives.h"

namespace tessera::TESSERA_CUDA {

// A primitive is a struct with the words that a block reads and writes, its threads, and what one
// thread does.
template <class P>
__global__ void primitive_kernel(const uint32_t* in, uint32_t* out) {
  P::apply(in + blockIdx.x * P::in, out + blockIdx.x * P::out, int(threadIdx.x));
}

struct Rows {
  alignas(16) uint32_t words[32][4];
};

// What outputs hold before.
constexpr uint32_t kFill = 0xA5A5A5A5;

// CUDA blocks that work on one block of a primitive, and bytes of their shared memory.
template <class P>
constexpr unsigned parts_of_primitive() {
  if constexpr (requires { P::parts; }) return P::parts;
  return 1;
}
template <class P>
constexpr size_t shared_of_primitive() {
  if constexpr (requires { sizeof(typename P::Shared); }) return sizeof(typename P::Shared);
  return sizeof(Rows);
}

// Freed also when a fault is thrown.
struct OwnStream {
  cudaStream_t it;
  OwnStream() { CUDA_CHECK(cudaStreamCreateWithFlags(&it, cudaStreamNonBlocking)); }
  ~OwnStream() { cudaStreamDestroy(it); }
  OwnStream(const OwnStream&) = delete;
};
struct OwnMemory {
  void* it = nullptr;
  explicit OwnMemory(size_t bytes) { CUDA_CHECK(cudaMalloc(&it, bytes)); }
  ~OwnMemory() { cudaFree(it); }
  OwnMemory(const OwnMemory&) = delete;
};

template <class P>
void run_primitive(int blocks, const uint32_t* in, uint32_t* out) {
  const size_t in_bytes = size_t(blocks) * P::in * 4, out_bytes = size_t(blocks) * P::out * 4;
  const OwnStream stream;
  const OwnMemory from(in_bytes), to(out_bytes);
  CUDA_CHECK(cudaMemcpyAsync(from.it, in, in_bytes, cudaMemcpyHostToDevice, stream.it));
  CUDA_CHECK(cudaMemsetAsync(to.it, kFill & 0xFF, out_bytes, stream.it));
  launch<primitive_kernel<P>>({stream.it, dim3(unsigned(blocks), parts_of_primitive<P>()),
                               dim3(unsigned(P::threads)), shared_of_primitive<P>()},
                              static_cast<const uint32_t*>(from.it), static_cast<uint32_t*>(to.it));
  CUDA_CHECK(cudaMemcpyAsync(out, to.it, out_bytes, cudaMemcpyDeviceToHost, stream.it));
  CUDA_CHECK(cudaStreamSynchronize(stream.it));
}

template <class P>
PrimitiveKernel kernel(const char* name) {
  return {name, P::in, P::out, run_primitive<P>};
}

// ---- What is timed.

#ifdef TESSERA_GPU
__device__ inline int64_t clock_now() { return clock64(); }
#else
inline int64_t clock_now() { return 0; }
#endif

// Launches a kernel with room for a few clocks, which are read back.
template <auto kernel, class... Args>
std::vector<int64_t> clocks_of(int count, int blocks, int threads, size_t shared,
                               const Args&... args) {
  std::vector<int64_t> clocks(size_t(count), 0);
  const OwnStream stream;
  const OwnMemory memory(size_t(count) * 8);
  launch<kernel>({stream.it, dim3(unsigned(blocks)), dim3(unsigned(threads)), shared}, args...,
                 static_cast<int64_t*>(memory.it));
  CUDA_CHECK(cudaMemcpyAsync(clocks.data(), memory.it, clocks.size() * 8, cudaMemcpyDeviceToHost,
                             stream.it));
  CUDA_CHECK(cudaStreamSynchronize(stream.it));
  return clocks;
}

// Those of primitives_intrinsics.cu and primitives_wgmma.cu.
void add_intrinsics(std::vector<PrimitiveKernel>& all);
void add_wgmma_kernels(std::vector<PrimitiveKernel>& all);

}  // namespace tessera::TESSERA_CUDA
