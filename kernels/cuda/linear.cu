// linear: y [N,K] = x [N,C] w[K,C]^T + b. The products are cuBLAS's (matmul.h); the bias is added
// and summed by kernels of our own, which are bound by memory.
#include "kernels/cuda/kernel.h"
#include "kernels/cuda/matmul.h"

namespace tessera::TESSERA_CUDA {
namespace {

// y[n,k] += b[k]
template <class T>
struct AddBias {
  const float* b;
  T* y;
  int64_t K;
  __device__ void operator()(int64_t i) const { put_at(y + i, b[i % K], true); }
};

constexpr int kColumns = 32, kRows = 8;  // of a block of threads

struct ColumnSums {
  float partial[kRows][kColumns];
};

// db[k] = sum over n of dy[n,k], or added. Thread (column, row) of a block sums every kRows-th row,
// then the first row adds the partial sums in order.
template <class T>
__global__ void linear_bias_grad_kernel(int64_t N, int64_t K, const T* dy, float* db,
                                        bool accumulate) {
  ColumnSums& shared = shared_memory<ColumnSums>();
  const int column = threadIdx.x % kColumns, row = threadIdx.x / kColumns;
  const int64_t k = int64_t(blockIdx.x) * kColumns + column;
  float sum = 0;
  if (k < K)
    for (int64_t n = row; n < N; n += kRows) sum += to_float(dy[n * K + k]);
  shared.partial[row][column] = sum;
  __syncthreads();
  if (row > 0 || k >= K) return;
  for (int i = 1; i < kRows; ++i) sum += shared.partial[i][column];
  put_at(db + k, sum, accumulate);
}

}  // namespace

void linear_fwd(Stream& stream, const Tensor& x, const Tensor& w, const Tensor& b, Tensor& y) {
  matmul(stream, {x}, {w, true}, y, GradMode::Overwrite);
  if (!b) return;
  with_storage(y.dtype(), [&](auto zero) {
    using T = decltype(zero);
    for_each(stream, y.numel(), AddBias<T>{b.data<float>(), y.data<T>(), y.dim(1)});
  });
}

void linear_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w, Grad dx) {
  matmul(stream, {dy}, {w}, dx.tensor, dx.mode);
}

void linear_bwd_weight(Stream& stream, const Tensor& x, const Tensor& dy, Grad dw, Grad db) {
  if (dw) matmul(stream, {dy, true}, {x}, dw.tensor, dw.mode);
  if (!db) return;
  with_storage(dy.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t N = dy.dim(0), K = dy.dim(1);
    launch<linear_bias_grad_kernel<T>>({cuda_stream(stream), dim3(unsigned(ceil_div(K, kColumns))),
                                        dim3(kColumns * kRows), sizeof(ColumnSums)},
                                       N, K, dy.data<T>(), db.tensor.data<float>(),
                                       db.mode == GradMode::Accumulate);
  });
}

}  // namespace tessera::TESSERA_CUDA
