// What a training step has around the network, bound by memory: the loss, the norm of all
// gradients, the update of the flat arenas, and the search for NaN and infinity. Squares are added
// in double, by blocks and then over these, in a fixed order; the loss takes them of differences
// that are floats, as stored. adam_step reads four floats and writes three, and a bf16 copy, per
// parameter; the formula: kernels/cpu/adam.cpp. In the search every thread looks at every (grid
// size)-th pack until it finds one, every block writes its first index, the host takes the least of
// those.
#include <algorithm>

#include "kernels/adam.h"
#include "kernels/cuda/last_block.h"
#include "kernels/cuda/reduce.h"

namespace tessera::TESSERA_CUDA {
namespace {

constexpr int kThreads = 256;
// Where threads take every (grid size)-th pack.
constexpr int64_t kMaxBlocks = 1024, kPacksPerThread = 4;
using Scratch = BlockScratch<double, kThreads>;

// Whether a value is neither NaN nor infinite, from its bits: no comparison, so that signalling
// NaNs raise nothing.
__device__ __forceinline__ bool is_finite(float x) {
  return (__float_as_uint(x) & 0x7F800000) != 0x7F800000;
}
__device__ __forceinline__ bool is_finite(bf16 x) { return (x.bits & 0x7F80) != 0x7F80; }

// Elements of a pack: 16 bytes of floats, and as many of what goes with them.
constexpr int kPackSize = kPack<float>;
constexpr int kLossPacksPerThread = 4;

// partial [blocks]: the sum of squares of kThreads * kLossPacksPerThread packs; loss = the sum of
// these / n.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    squared_error_kernel(int64_t packs, const T* prediction, const float* target, double* partial,
                         float* loss, unsigned* arrivals) {
  ptx::begin_kernel();
  auto& scratch = shared_memory<Scratch>();
  const int64_t first = int64_t(blockIdx.x) * (kThreads * kLossPacksPerThread) + threadIdx.x;
  double sum = 0;
  for (int k = 0; k < kLossPacksPerThread; ++k) {
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

// partials[block] = sum of g^2 over every (grid size)-th pack; norm = the root of their sum.
template <int N>
__global__ void square_sum_kernel(int64_t packs, const float* g, double* partials, float* norm,
                                  unsigned* arrivals) {
  ptx::begin_kernel();
  auto& scratch = shared_memory<Scratch>();
  double sum = 0;
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < packs; i += stride) {
    const Pack<float, N> values = Pack<float, N>::load(g + i * N);
    for (int j = 0; j < N; ++j) sum += double(values[j]) * double(values[j]);
  }
  sum = block_reduce(sum, Sum{}, scratch);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
  if (!Arrival(arrivals, gridDim.x).is_last()) return;
  sum = sum_of<kThreads>(partials, gridDim.x, scratch);
  if (threadIdx.x == 0) *norm = float(sqrt(sum));
}

template <int N>
void square_sums(Stream& stream, const Tensor& grads, Tensor& partials, Tensor& norm) {
  launch_next<square_sum_kernel<N>>(
      {cuda_stream(stream), dim3(unsigned(partials.numel())), dim3(kThreads), sizeof(Scratch)},
      grads.numel() / N, grads.data<float>(), partials.data<double>(), norm.data<float>(),
      Arrivals::of(stream, 1));
}

struct AdamPointers {
  const float* grads;  // [n], as params, m, v and copies
  float *params, *m, *v;
  bf16* copies;                       // or null, as all that follow
  const float* norm;                  // [1]
  const float* loss;                  // [1]
  int64_t* latch;                     // [1]
  const int64_t* now;                 // [1]
  const AdamFactors<float>* factors;  // [1], with now
};

// Whether the update takes place: the same answer in every thread. When loss or norm is not finite,
// only the thread that sets the latch looks at it; otherwise nobody writes it.
__device__ __forceinline__ bool passes_latch(int64_t step, const AdamPointers& a) {
  if (!a.latch) return true;
  if (is_finite(*a.norm) && (!a.loss || is_finite(*a.loss))) return *a.latch == 0;
  if (blockIdx.x == 0 && threadIdx.x == 0 && *a.latch == 0) *a.latch = step;
  return false;
}

// N parameters a thread.
template <int N>
__global__ void adam_step_kernel(int64_t packs, int64_t step, AdamFactors<float> f, float max_norm,
                                 AdamPointers a) {
  ptx::begin_kernel();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (a.now) step = *a.now, f = *a.factors;
  if (!passes_latch(step, a) || i >= packs) return;
  float clip = 1;
  if (max_norm > 0) {
    const float scale = max_norm / (*a.norm + 1e-6f);
    clip = scale >= 1 ? 1 : scale;  // NaN stays NaN
  }
  const auto grads = Pack<float, N>::load(a.grads + i * N);
  auto params = Pack<float, N>::load(a.params + i * N);
  auto m = Pack<float, N>::load(a.m + i * N), v = Pack<float, N>::load(a.v + i * N);
  float copies[N];
  for (int j = 0; j < N; ++j) {
    const float g = clip * grads[j];
    m.set(j, f.beta1 * m[j] + f.one_minus_beta1 * g);
    v.set(j, f.beta2 * v[j] + f.one_minus_beta2 * g * g);
    const float denominator = sqrtf(v[j]) / f.root_correction2 + f.eps;
    params.set(j, f.decay * params[j] - f.step_size * m[j] / denominator);
    copies[j] = params[j];
  }
  params.store(a.params + i * N);
  m.store(a.m + i * N);
  v.store(a.v + i * N);
  if (a.copies) Pack<bf16, N>::of(copies).store(a.copies + i * N);
}

template <int N>
void adam_steps(Stream& stream, const AdamSpec& spec, int64_t step, int64_t n,
                const AdamPointers& a) {
  // At least one block: the latch is set even where there is nothing to update.
  const int64_t blocks = std::max<int64_t>(ceil_div(n / N, kThreads), 1);
  launch_next<adam_step_kernel<N>>({cuda_stream(stream), dim3(unsigned(blocks)), dim3(kThreads)},
                                   n / N, step, AdamFactors<float>(spec, step),
                                   float(spec.max_norm), a);
}

template <int N>
struct CopyRounded {
  const float* from;
  bf16* to;
  __device__ void operator()(int64_t i) const {
    const auto values = Pack<float, N>::load(from + i * N);
    float numbers[N];
    for (int j = 0; j < N; ++j) numbers[j] = values[j];
    Pack<bf16, N>::of(numbers).store(to + i * N);
  }
};

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

void mse_fwd(Stream& stream, const Tensor& prediction, const Tensor& target, Tensor& loss) {
  with_storage(prediction.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = prediction.numel();
    const T* p = prediction.data<T>();
    const float* t = target.data<float>();
    const auto run = [&](auto pack) {
      constexpr int V = decltype(pack)::value;
      const int64_t packs = n / V, blocks = ceil_div(packs, kThreads * kLossPacksPerThread);
      Tensor partial = Tensor::empty(stream, {blocks}, DType::f64);
      launch_next<squared_error_kernel<T, V>>(
          {cuda_stream(stream), dim3(unsigned(blocks)), dim3(kThreads), sizeof(Scratch)}, packs, p,
          t, partial.data<double>(), loss.data<float>(), Arrivals::of(stream, 1));
    };
    with_pack<kPackSize>(packs_fit<T, kPackSize>(n, p) && packs_fit<float, kPackSize>(n, t), run);
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
    with_pack<kPackSize>(packs_fit<T, kPackSize>(n, p, dp) && packs_fit<float, kPackSize>(n, t),
                         run);
  });
}

void grad_norm(Stream& stream, const Tensor& grads, Tensor& norm) {
  const int64_t n = grads.numel();
  const int64_t blocks =
      std::clamp<int64_t>(ceil_div(n, kPackSize * kThreads * kPacksPerThread), 1, kMaxBlocks);
  Tensor partials = Tensor::empty(stream, {blocks}, DType::f64);
  with_pack<kPackSize>(packs_fit<float, kPackSize>(n, grads.data<float>()),
                       [&](auto N) { square_sums<N>(stream, grads, partials, norm); });
}

void adam_step(Stream& stream, const AdamSpec& spec, int64_t step, AdamTensors t) {
  const AdamPointers a{t.grads.data<float>(),
                       t.params.data<float>(),
                       t.m.data<float>(),
                       t.v.data<float>(),
                       data_or_null<bf16>(t.copies),
                       data_or_null<float>(t.norm),
                       data_or_null<float>(t.loss),
                       data_or_null<int64_t>(t.latch),
                       data_or_null<int64_t>(t.now),
                       reinterpret_cast<const AdamFactors<float>*>(data_or_null<float>(t.factors))};
  const int64_t n = t.grads.numel();
  const bool fit = packs_fit<float, kPackSize>(n, a.grads, a.params, a.m, a.v) &&
                   packs_fit<bf16, kPackSize>(n, a.copies);
  with_pack<kPackSize>(fit, [&](auto N) { adam_steps<N>(stream, spec, step, n, a); });
}

void copy_rounded(Stream& stream, const Tensor& params, Tensor& copies) {
  const float* from = params.data<float>();
  bf16* to = copies.data<bf16>();
  const int64_t n = params.numel();
  const bool fit = packs_fit<float, kPackSize>(n, from) && packs_fit<bf16, kPackSize>(n, to);
  with_pack<kPackSize>(fit, [&](auto N) { for_each(stream, n / N, CopyRounded<N>{from, to}); });
}

void find_non_finite(Stream& stream, const Tensor& x, int64_t& index) {
  index = -1;
  if (x.numel() == 0) return;
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const std::vector<int64_t> firsts =
        with_pack<kPack<T>>(packs_fit<T, kPack<T>>(x.numel(), x.data<T>()),
                            [&](auto N) { return firsts_of<T, N>(stream, x); });
    const int64_t first = *std::min_element(firsts.begin(), firsts.end());
    if (first < x.numel()) index = first;
  });
}

}  // namespace tessera::TESSERA_CUDA
