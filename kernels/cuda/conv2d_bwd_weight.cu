// dw of conv2d as an implicit matrix product: rows k, columns r s c, depth n p q. The result is
// small and the depth is long: blocks take parts of it and leave partial sums, which a second
// kernel adds in order. db is the sum of dy over its pixels, in the same two steps.
#include "kernels/cuda/conv_launch.h"

namespace tessera::TESSERA_CUDA {
namespace conv {
namespace {

constexpr int kColumns = 32, kRows = 8;  // of a block of threads
constexpr int kPixels = 1024;            // that a block sums

struct ColumnSums {
  float partial[kRows][kColumns];
};

// partial[part][k] = sum over the part's pixels of dy [pixels,K]. Thread (column, row) sums every
// kRows-th pixel, then the first row adds what the others have, in order.
template <class T>
__global__ void bias_grad_kernel(int pixels, int K, const T* dy, float* partial) {
  ColumnSums& shared = shared_memory<ColumnSums>();
  const int column = int(threadIdx.x) % kColumns, row = int(threadIdx.x) / kColumns;
  const int groups = (K + kColumns - 1) / kColumns, part = int(blockIdx.x) / groups;
  const int k = int(blockIdx.x) % groups * kColumns + column;
  const int first = part * kPixels, end = min(first + kPixels, pixels);
  float sum = 0;
  if (k < K)
    for (int i = first + row; i < end; i += kRows) sum += to_float(dy[int64_t(i) * K + k]);
  shared.partial[row][column] = sum;
  __syncthreads();
  if (row > 0 || k >= K) return;
  for (int i = 1; i < kRows; ++i) sum += shared.partial[i][column];
  partial[int64_t(part) * K + k] = sum;
}

}  // namespace

void bias_grad(Stream& stream, const Tensor& dy, Grad db) {
  if (!db) return;
  const int64_t K = dy.dim(3), pixels = dy.numel() / K;
  const int64_t parts = ceil_div(pixels, kPixels), blocks = parts * ceil_div(K, kColumns);
  Tensor partial = Tensor::empty(stream, {parts, K}, DType::f32);
  float* sums = partial.data<float>();
  with_storage(dy.dtype(), [&](auto zero) {
    using T = decltype(zero);
    ENSURE(blocks <= INT32_MAX, "conv2d: db of ", dy.shape());
    launch<bias_grad_kernel<T>>(
        {cuda_stream(stream), dim3(unsigned(blocks)), dim3(kColumns * kRows), sizeof(ColumnSums)},
        int(pixels), int(K), dy.data<T>(), sums);
  });
  sum_parts(stream, partial, db);
}

}  // namespace conv

void conv2d_bwd_weight(Stream& stream, const ConvSpec& spec, const Tensor& x, const Tensor& dy,
                       Grad dw, Grad db) {
  const conv::Sizes s(ConvProblem::of(spec, x.shape(), dw.tensor.shape()));
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.data<T>();
    conv::run_bwd_weight(stream, s, conv::Image<T>{from, s.H, s.W, s.C},
                         packs_fit<T, kPack<T>>(s.C, from), dy, dw, db);
  });
}

}  // namespace tessera::TESSERA_CUDA
