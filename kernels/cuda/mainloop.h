// The mainloop of all products by tensor cores: of matrices (gemm_mma.h), of 3x3 convolutions
// (conv_halo.h) and of their filters' gradients (conv_halo_wgrad.h). While a step is multiplied,
// those behind it are on their way to a ring of stages in shared memory.
//
// wgmma multiplies by itself, so that its products of one step follow those of the step before
// without a gap: a thread issues them, starts the copies that take the place of the step before the
// last, waits for the products of the last one and for the copies of the next, and meets the
// others. Two stages have no room for that: there a copy starts and is waited for beside one step.
//
//     tensor cores   |   step i - 1   |     step i     |   step i + 1   |
//     a thread    issue i, copy i + stages - 2, wait for i - 1, for the copies of i + 1, barrier
//
// mma.sync is the threads' own work. They meet before each step.
#pragma once

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/ptx/cp_async.h"
#include "kernels/cuda/ptx/fence.h"
#include "kernels/cuda/ptx/named_barrier.h"
#include "kernels/cuda/ptx/wgmma.h"

namespace tessera::TESSERA_CUDA::gemm {

// Bytes of shared memory for each of `blocks` blocks on a multiprocessor of 9.0: it has 228 KB, of
// which 1 KB a block is the system's.
constexpr size_t shared_of(int blocks) { return size_t(228 / blocks - 1) * 1024; }

// The most stages, 6 at most, with which Shared<stages> is no larger than `bytes`.
template <template <int> class Shared, int stages = 6>
constexpr int stages_in(size_t bytes) {
  if constexpr (stages > 2)
    if (sizeof(Shared<stages>) > bytes) return stages_in<Shared, stages - 1>(bytes);
  return stages;
}

// All threads have the copies that each of them issued, but for its last n groups. sees: so do the
// tensor cores.
template <int n, bool sees>
__device__ __forceinline__ void meet() {
  ptx::cp_async_wait<n>();
  if constexpr (sees) ptx::fence_proxy_async();
  __syncthreads();
}

// Steps first to end - 1, one at least: start(i) begins to copy what step i multiplies to stage
// i % stages, multiply(i) multiplies it; by wgmma its last Sums::kGroups groups are all that may go
// on then. Behind the steps sums are complete; other threads may still read the last stages.
//
// The loop has no way round it: ptxas would put the sums' zeros into it, and then wait for each
// wgmma by itself (its message C7515, which tests/kernel_resources.py finds).
template <int stages, class Sums, class Start, class Multiply>
__device__ __forceinline__ void multiply_steps(int first, int end, const Start& start,
                                               const Multiply& multiply) {
  static_assert(stages >= 2);
  // Each step commits one group, an empty one past the end, so that the waits can count them.
  const auto copy = [&](int step) {
    if (step < end) start(step);
    ptx::cp_async_commit();
  };
  constexpr int ahead = Sums::kAsync && stages > 2 ? stages - 2 : stages - 1;
  TESSERA_NO_UNROLL
  for (int i = 0; i < ahead; ++i) copy(first + i);

  int step = first;
  if constexpr (!Sums::kAsync) {
    do {
      meet<stages - 2, false>();  // nobody reads the step before any more
      copy(step + ahead);
      multiply(step);
    } while (++step < end);
  } else {
    meet<ahead - 1, true>();
    do {
      ptx::wgmma_fence();
      multiply(step);
      if constexpr (stages > 2) copy(step + ahead);
      ptx::wgmma_wait<Sums::kGroups>();  // those of the step before have ended
      if constexpr (stages == 2) {       // there is no stage for the next step before
        __syncthreads();
        copy(step + ahead);
      }
      meet<ahead - 1, true>();
    } while (++step < end);
    ptx::wgmma_wait<0>();
  }
}

// ---- The same in two halves, by wgmma, for products whose threads have no time to copy: behind
// the `threads` that multiply a block has kCopiers more, which only copy. Named barriers tell the
// ones that a stage is full and the others that it is empty.
inline constexpr int kCopiers = 128;
// What a kernel adds to its launch bounds for them.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
inline constexpr int kCopiersHere = kCopiers;
#else
inline constexpr int kCopiersHere = 0;
#endif

template <int stages, int threads>
struct RingBarriers {
  static_assert(2 * stages < 16);
  static constexpr int kThreads = threads + kCopiers;
  static __device__ __forceinline__ int full(int step) { return 1 + step % stages; }
  static __device__ __forceinline__ int empty(int step) { return 1 + stages + step % stages; }
};

// A step is said to be here when the copies of the next one or two have begun: these need an empty
// stage, and who waits for the step must not have to empty it first.
template <int stages, int threads, class Start>
__device__ __forceinline__ void copy_steps(int first, int end, const Start& start) {
  using Barriers = RingBarriers<stages, threads>;
  static_assert(stages >= 4);
  constexpr int later = stages == 4 ? 1 : 2;
  TESSERA_NO_UNROLL
  for (int step = first; step < end + later; ++step) {
    if (step < end) {
      if (step - first >= stages)
        ptx::named_barrier_sync(Barriers::empty(step), Barriers::kThreads);
      start(step);
    }
    ptx::cp_async_commit();
    if (step - first < later) continue;
    ptx::cp_async_wait<later>();
    ptx::fence_proxy_async();
    ptx::named_barrier_arrive(Barriers::full(step - later), Barriers::kThreads);
  }
}

// multiply(step) has a fence before its products and, before it returns, waits for those of the
// step before: that one's stage is copied to next.
template <int stages, int threads, class Multiply>
__device__ __forceinline__ void multiply_copied(int first, int end, const Multiply& multiply) {
  using Barriers = RingBarriers<stages, threads>;
  int step = first;
  do {
    ptx::named_barrier_sync(Barriers::full(step), Barriers::kThreads);
    multiply(step);
    if (step > first && step - 1 + stages < end)
      ptx::named_barrier_arrive(Barriers::empty(step - 1), Barriers::kThreads);
  } while (++step < end);
  ptx::wgmma_wait<0>();
}

}  // namespace tessera::TESSERA_CUDA::gemm
