// Sums over blocks in the launch that makes their parts: every block leaves its part in memory and
// arrives at a counter, and the one that comes last adds up all parts, in their order. Which block
// that is does not matter to a bit of the result.
#pragma once

#include "kernels/cuda/kernel.h"
#include "kernels/cuda/ptx/arrive.h"

namespace tessera::TESSERA_CUDA {

// A stream's counters, for the one launch that runs: zero before it and, as the last arrival starts
// anew, behind it.
class Arrivals {
 public:
  static constexpr int64_t kMost = 1024;
  explicit Arrivals(Stream& stream)
      : counters_(Tensor::zeros(stream, {kMost * int64_t{sizeof(unsigned)}}, DType::u8)) {}
  static unsigned* of(Stream& stream, int64_t wanted) {
    ENSURE(wanted <= kMost, wanted, " counters");
    return reinterpret_cast<unsigned*>(stream.state<Arrivals>().counters_.raw());
  }

 private:
  Tensor counters_;
};

// One block's arrival among `blocks`. All threads come, with a barrier between what others than the
// first one wrote and this. What they do until is_last() goes on beside it.
class Arrival {
 public:
  Arrival() = default;
  __device__ __forceinline__ Arrival(unsigned* counter, unsigned blocks) : last_(blocks - 1) {
    if (threadIdx.x == 0) before_ = ptx::arrive(counter, last_);
  }
  // A barrier: whether it was the last one, for all threads, which then see what all blocks wrote.
  __device__ __forceinline__ bool is_last() const {
    const bool last = threadIdx.x == 0 && before_ == last_;
    if (last) ptx::fence_arrived();
    return __syncthreads_or(last);
  }

 private:
  unsigned last_ = 0, before_ = ~0u;  // of the first thread
};

}  // namespace tessera::TESSERA_CUDA
