// Mean squared error, bound by memory. Differences are floats, as stored; their squares are added
// in double, in two stages of a fixed order.
#include "kernels/cuda/last_block.h"
#include "kernels/cuda/reduce.h"

namespace tessera::TESSERA_CUDA {
namespace {

constexpr int kThreads = 256, kLoads = 4;  // of a thread
using Scratch = BlockScratch<double, kThreads>;

// partial [blocks]: the sum of squares of kThreads * kLoads packs; loss = the sum of these / n.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    squared_error_kernel(int64_t packs, const T* prediction, const float* target, double* partial,
                         float* loss, unsigned* arrivals) {
  ptx::begin_kernel();
  auto& scratch = shared_memory<Scratch>();
  const int64_t first = int64_t(blockIdx.x) * (kThreads * kLoads) + threadIdx.x;
  double sum = 0;
  for (int k = 0; k < kLoads; ++k) {
    const int64_t i = first + k * kThreads;
    if (i >= packs) break;
    const auto p = Pack<T, V>::load(prediction + i * V);
    const auto t = Pack<float, V>::load(target + i * V);
    for (int j = 0; j < V; ++j) {
      const float error = p[j] - t[j];
      sum += double(error) * double(error);
    }
  }
  sum = block_reduce(sum, Sum{}, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
  if (!Arrival(arrivals, gridDim.x).is_last()) return;
  sum = sum_of<kThreads>(partial, gridDim.x, scratch);
  if (threadIdx.x == 0) *loss = float(sum / double(packs * V));
}

template <class T, int V>
struct MseBwd {
  const T* prediction;
  const float *target, *dloss;
  T* dprediction;
  double two_over_n;
  bool accumulate;
  __device__ void operator()(int64_t i) const {
    const auto p = Pack<T, V>::load(prediction + i * V);
    const auto t = Pack<float, V>::load(target + i * V);
    const float scale = float(two_over_n * double(*dloss));
    Pack<T, V> old;
    if (accumulate) old = Pack<T, V>::load(dprediction + i * V);
    float values[V];
    for (int j = 0; j < V; ++j) {
      const float value = scale * (p[j] - t[j]);
      values[j] = accumulate ? old[j] + value : value;
    }
    Pack<T, V>::of(values).store(dprediction + i * V);
  }
};

constexpr int kPackSize = 4;  // 16 bytes of the target

// Calls f(pack size constant).
template <class T, class F, class... Pointers>
void with_pack(int64_t n, F&& f, const float* target, const Pointers*... pointers) {
  if (packs_fit<T, kPackSize>(n, pointers...) && packs_fit<float, kPackSize>(n, target))
    return f(std::integral_constant<int, kPackSize>{});
  f(std::integral_constant<int, 1>{});
}

}  // namespace

void mse_fwd(Stream& stream, const Tensor& prediction, const Tensor& target, Tensor& loss) {
  with_storage(prediction.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = prediction.numel();
    const T* p = prediction.data<T>();
    const float* t = target.data<float>();
    const auto run = [&](auto pack) {
      constexpr int V = decltype(pack)::value;
      const int64_t packs = n / V, blocks = ceil_div(packs, kThreads * kLoads);
      Tensor partial = Tensor::empty(stream, {blocks}, DType::f64);
      launch_next<squared_error_kernel<T, V>>(
          {cuda_stream(stream), dim3(unsigned(blocks)), dim3(kThreads), sizeof(Scratch)}, packs, p,
          t, partial.data<double>(), loss.data<float>(), Arrivals::of(stream, 1));
    };
    with_pack<T>(n, run, t, p);
  });
}

void mse_bwd(Stream& stream, const Tensor& prediction, const Tensor& target, const Tensor& dloss,
             Grad dprediction) {
  with_storage(prediction.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = prediction.numel();
    const T* p = prediction.data<T>();
    const float* t = target.data<float>();
    T* dp = dprediction.tensor.data<T>();
    const auto run = [&](auto pack) {
      constexpr int V = decltype(pack)::value;
      for_each(stream, n / V,
               MseBwd<T, V>{p, t, dloss.data<float>(), dp, 2.0 / double(n),
                            dprediction.mode == GradMode::Accumulate});
    };
    with_pack<T>(n, run, t, p, dp);
  });
}

}  // namespace tessera::TESSERA_CUDA
