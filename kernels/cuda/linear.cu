// linear: y [N,K] = x [N,C] w[K,C]^T + b. The products are cuBLAS's (matmul.h); the bias is added
// and summed by kernels of our own, which are bound by memory.
#include "kernels/cuda/columns.h"
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
    sum_rows(stream, 1, dy.dim(0), dy.dim(0), dy.dim(1), dy.data<T>(),
             PutSum<float>{db.tensor.data<float>(), db.mode == GradMode::Accumulate, dy.dim(1)});
  });
}

}  // namespace tessera::TESSERA_CUDA
