// Reductions of one value per thread over a warp and over a block, in a fixed order. The operator
// is a struct; it must be commutative bit for bit, so that every thread gets the same result.
// Blocks are one-dimensional, their size is a multiple of 32, and every thread must come.
#pragma once

#include "kernels/cuda/kernel.h"

namespace tessera::TESSERA_CUDA {

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(const T& a, const T& b) const {
    return a + b;
  }
};

// Over a warp; every lane gets the result.
template <class T, class Op>
__device__ __forceinline__ T warp_reduce(T value, Op op) {
  for (int lanes = 16; lanes > 0; lanes /= 2)
    value = op(value, __shfl_xor_sync(0xFFFFFFFF, value, lanes));
  return value;
}

// What block_reduce needs in shared memory.
template <class T, int Threads>
struct BlockScratch {
  static_assert(Threads % 32 == 0 && Threads <= 1024);
  T warps[Threads / 32];
};

// Over a block of `Threads` threads; every thread gets the result, and the scratch is free again.
template <class T, int Threads, class Op>
__device__ __forceinline__ T block_reduce(T value, Op op, BlockScratch<T, Threads>& scratch) {
  value = warp_reduce(value, op);
  if (threadIdx.x % 32 == 0) scratch.warps[threadIdx.x / 32] = value;
  __syncthreads();
  T result = scratch.warps[0];
  for (int i = 1; i < Threads / 32; ++i) result = op(result, scratch.warps[i]);
  __syncthreads();
  return result;
}

// The sum of `count` values in memory, by a block of kThreads, for every thread.
template <int kThreads, class T>
__device__ __forceinline__ T sum_of(const T* values, unsigned count,
                                    BlockScratch<T, kThreads>& scratch) {
  T sum = 0;
  for (unsigned i = threadIdx.x; i < count; i += kThreads) sum += values[i];
  return block_reduce(sum, Sum{}, scratch);
}

}  // namespace tessera::TESSERA_CUDA
