// The search for NaN and infinity, bound by memory: every thread looks at every (grid size)-th pack
// until it finds one, every block writes its first index, the host takes the least of those.
#include <algorithm>

#include "kernels/cuda/finite.h"
#include "kernels/cuda/reduce.h"

namespace tessera::TESSERA_CUDA {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1024, kPacksPerThread = 4;

struct Least {
  __device__ __forceinline__ int64_t operator()(int64_t a, int64_t b) const {
    return a < b ? a : b;
  }
};

// firsts[block] = the first index the block found, or N * packs.
template <class T, int N>
__global__ void find_non_finite_kernel(int64_t packs, const T* x, int64_t* firsts) {
  ptx::begin_kernel();
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  int64_t first = N * packs;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < packs; i += stride) {
    const Pack<T, N> values = Pack<T, N>::load(x + i * N);
    for (int j = N; j-- > 0;)
      if (!is_finite(values.values[j])) first = i * N + j;
    if (first < N * packs) break;
  }
  first = block_reduce(first, Least{}, shared_memory<BlockScratch<int64_t, kThreads>>());
  if (threadIdx.x == 0) firsts[blockIdx.x] = first;
}

template <class T, int N>
std::vector<int64_t> firsts_of(Stream& stream, const Tensor& x) {
  const int64_t packs = x.numel() / N;
  const int64_t blocks = std::min(ceil_div(packs, kThreads * kPacksPerThread), kMaxBlocks);
  Tensor firsts = Tensor::empty(stream, {blocks}, DType::i64);
  launch_next<find_non_finite_kernel<T, N>>(
      {cuda_stream(stream), dim3(unsigned(blocks)), dim3(kThreads),
       sizeof(BlockScratch<int64_t, kThreads>)},
      packs, x.data<T>(), firsts.data<int64_t>());
  return firsts.to_vector<int64_t>(stream);
}

}  // namespace

void find_non_finite(Stream& stream, const Tensor& x, int64_t& index) {
  index = -1;
  if (x.numel() == 0) return;
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const std::vector<int64_t> firsts = packs_fit<T, kPack<T>>(x.numel(), x.data<T>())
                                            ? firsts_of<T, kPack<T>>(stream, x)
                                            : firsts_of<T, 1>(stream, x);
    const int64_t first = *std::min_element(firsts.begin(), firsts.end());
    if (first < x.numel()) index = first;
  });
}

}  // namespace tessera::TESSERA_CUDA
