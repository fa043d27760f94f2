// One tiny kernel per CUDA operation between threads, per fence, and for arrivals: primitives.h.
#include "kernels/cuda/ptx/arrive.h"
#include "kernels/cuda/ptx/fence.h"
#include "tests/cuda/primitive_run.h"

namespace tessera::TESSERA_CUDA {
namespace {

// Four blocks write a part each, and the last of them to come adds up what all have written. out:
// the parts, the sums, and the counter, which is left as 0.
struct LastOfFour {
  static constexpr int in = 128, out = 161, threads = 32, parts = 4;
  __device__ static void put_part(const uint32_t* in, uint32_t* out, int lane) {
    out[blockIdx.y * 32 + lane] = in[blockIdx.y * 32 + lane];
  }
  __device__ static void put_sum(uint32_t* out, int lane) {
    uint32_t sum = 0;
    for (int i = 0; i < 4; ++i) sum += out[i * 32 + 31 - lane];
    out[128 + lane] = sum;
  }
};
template <bool async_proxy>
struct Fences : LastOfFour {
  __device__ static void apply(const uint32_t* in, uint32_t* out, int lane) {
    put_part(in, out, lane);
    if constexpr (async_proxy) ptx::fence_proxy_async();
    __threadfence();
    __syncwarp();
    const uint32_t mine = lane == 0 ? atomicAdd(&out[160], 1) : 0;
    if (__shfl_sync(0xFFFFFFFF, mine, 0) != kFill + 3) return;
    __threadfence();
    put_sum(out, lane);
    if (lane == 0) atomicExch(&out[160], 0);
  }
};
struct Arrivals : LastOfFour {
  __device__ static void apply(const uint32_t* in, uint32_t* out, int lane) {
    put_part(in, out, lane);
    __syncwarp();
    // The counter begins with more than the last number, so the first arrival makes it 0.
    const bool last = lane == 0 && ptx::arrive(&out[160], 2) == 2;
    if (last) ptx::fence_arrived();
    __syncwarp();
    if (!__shfl_sync(0xFFFFFFFF, int(last), 0)) return;
    put_sum(out, lane);
  }
};

// out: for widths 32, 8 and 1, what the four shuffles give with a source or distance from `in`.
struct Shuffles {
  static constexpr int in = 64, out = 12 * 32, threads = 32;
  __device__ static void apply(const uint32_t* in, uint32_t* out, int lane) {
    const unsigned all = 0xFFFFFFFF;
    const uint32_t value = in[lane];
    const int by = int(in[32] % 64);  // of xor, up and down: the same for all
    int row = 0;
    for (int width = 32; width >= 1; width = width == 32 ? 8 : width == 8 ? 1 : 0) {
      out[row++ * 32 + lane] = __shfl_sync(all, value, int(in[32 + lane] % 32), width);
      out[row++ * 32 + lane] = __shfl_xor_sync(all, value, by, width);
      out[row++ * 32 + lane] = __shfl_up_sync(all, value, unsigned(by), width);
      out[row++ * 32 + lane] = __shfl_down_sync(all, value, unsigned(by), width);
    }
  }
};

// The lanes whose first word is even meet, and the others do; out: ballot, any, all of the second.
struct Votes {
  static constexpr int in = 64, out = 96, threads = 32;
  __device__ static void apply(const uint32_t* in, uint32_t* out, int lane) {
    const bool odd = in[lane] % 2;
    const unsigned mask = __ballot_sync(0xFFFFFFFF, odd);
    const int vote = int(in[32 + lane] % 4 == 0);
    if (odd) {
      out[lane] = __ballot_sync(mask, vote);
      out[32 + lane] = uint32_t(__any_sync(mask, vote) != 0);
      out[64 + lane] = uint32_t(__all_sync(mask, vote) != 0);
    } else {
      out[lane] = __ballot_sync(~mask, vote);
      out[32 + lane] = uint32_t(__any_sync(~mask, vote) != 0);
      out[64 + lane] = uint32_t(__all_sync(~mask, vote) != 0);
    }
  }
};

// The lanes whose first word is even meet, and the others do; out: lanes with the same second word
// modulo 4, lanes if all have the same modulo 2 and whether they do.
struct Matches {
  static constexpr int in = 64, out = 96, threads = 32;
  __device__ static void apply(const uint32_t* in, uint32_t* out, int lane) {
    const bool odd = in[lane] % 2;
    const unsigned mask = __ballot_sync(0xFFFFFFFF, odd);
    const uint32_t word = in[32 + lane] % 64 ? in[32 + lane] % 4 : 2;
    int same;
    if (odd) {
      out[lane] = __match_any_sync(mask, word);
      out[32 + lane] = __match_all_sync(mask, in[0] % 2 ? word : 7, &same);
    } else {
      out[lane] = __match_any_sync(~mask, word);
      out[32 + lane] = __match_all_sync(~mask, in[0] % 2 ? word : 7, &same);
    }
    out[64 + lane] = uint32_t(same != 0);
  }
};

// out: sum, minimum, maximum (unsigned, then signed), and, or, xor. Declared from sm_80 on.
struct Reductions {
  static constexpr int in = 32, out = 8 * 32, threads = 32;
  __device__ static void apply(const uint32_t* in, uint32_t* out, int lane) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    const unsigned all = 0xFFFFFFFF, word = in[lane];
    out[lane] = __reduce_add_sync(all, word);
    out[32 + lane] = __reduce_min_sync(all, word);
    out[64 + lane] = __reduce_max_sync(all, word);
    out[96 + lane] = uint32_t(__reduce_min_sync(all, int(word)));
    out[128 + lane] = uint32_t(__reduce_max_sync(all, int(word)));
    out[160 + lane] = __reduce_and_sync(all, word | in[0]);
    out[192 + lane] = __reduce_or_sync(all, word & in[0]);
    out[224 + lane] = __reduce_xor_sync(all, word);
#else
    __trap();
#endif
  }
};

// What all threads' atomics leave behind, which does not depend on their order.
struct Atomics {
  static constexpr int in = 96, out = 12, threads = 96;
  __device__ static void apply(const uint32_t* in, uint32_t* out, int thread) {
    Rows& rows = shared_memory<Rows>();
    uint32_t* const result = rows.words[0];
    if (thread < 12) result[thread] = in[thread];
    __syncthreads();
    const uint32_t word = in[thread];
    atomicAdd(&result[0], word);
    atomicSub(&result[1], word);
    atomicMin(&result[2], word);
    atomicMax(&result[3], word);
    atomicMin(reinterpret_cast<int*>(&result[4]), int(word));
    atomicMax(reinterpret_cast<int*>(&result[5]), int(word));
    atomicAnd(&result[6], word | in[0]);
    atomicOr(&result[7], word & in[0]);
    atomicXor(&result[8], word);
    atomicInc(&result[9], 76);
    if (thread == 5) atomicExch(&result[10], word);
    uint32_t old = result[11];  // += word, by hand
    for (uint32_t seen; (seen = atomicCAS(&result[11], old, old + word)) != old;) old = seen;
    __syncthreads();
    if (thread < 12) out[thread] = result[thread];
  }
};

// out: count, and, or of the predicates of all 96 threads, as each thread sees them.
struct BlockVotes {
  static constexpr int in = 96, out = 288, threads = 96;
  __device__ static void apply(const uint32_t* in, uint32_t* out, int thread) {
    const int count = __syncthreads_count(int(in[thread] % 2));
    const int every = __syncthreads_and(int(in[thread] % 64));
    const int any = __syncthreads_or(int(in[thread] % 128 == 0));
    out[thread] = uint32_t(count);
    out[96 + thread] = uint32_t(every != 0);
    out[192 + thread] = uint32_t(any != 0);
  }
};

}  // namespace

void add_intrinsics(std::vector<PrimitiveKernel>& all) {
  const PrimitiveKernel added[] = {
      kernel<Fences<false>>("fences"),   kernel<Fences<true>>("fence.proxy.async"),
      kernel<Arrivals>("atom.release"),  kernel<Shuffles>("shfl.sync"),
      kernel<Votes>("vote.sync"),        kernel<Matches>("match.sync"),
      kernel<Reductions>("redux.sync"),  kernel<Atomics>("atom"),
      kernel<BlockVotes>("barrier.red"),
  };
  all.insert(all.end(), std::begin(added), std::end(added));
}

}  // namespace tessera::TESSERA_CUDA
