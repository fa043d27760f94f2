// linear: checks, dispatch and the f64 oracle; the fast path is oneDNN's matmul.
#include "kernels/cpu/convolve.h"
#include "kernels/cpu/loops.h"

namespace tessera {
namespace oracle {

void linear_fwd(Stream&, const Tensor& x, const Tensor& w, const Tensor& b, Tensor& y) {
  const int64_t N = x.dim(0), C = x.dim(1), K = w.dim(0);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t k = 0; k < K; ++k) {
      double sum = b ? b.data<double>()[k] : 0.0;
      for (int64_t c = 0; c < C; ++c)
        sum += x.data<double>()[n * C + c] * w.data<double>()[k * C + c];
      y.data<double>()[n * K + k] = sum;
    }
}

void linear_bwd_data(Stream&, const Tensor& dy, const Tensor& w, Grad dx) {
  const int64_t N = dy.dim(0), K = w.dim(0), C = w.dim(1);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t c = 0; c < C; ++c) {
      double sum = 0;
      for (int64_t k = 0; k < K; ++k)
        sum += dy.data<double>()[n * K + k] * w.data<double>()[k * C + c];
      put(dx.tensor.data<double>()[n * C + c], sum, dx.mode);
    }
}

void linear_bwd_weight(Stream&, const Tensor& x, const Tensor& dy, Grad dw, Grad db) {
  const int64_t N = x.dim(0), C = x.dim(1), K = dy.dim(1);
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t c = 0; dw && c < C; ++c) {
      double sum = 0;
      for (int64_t n = 0; n < N; ++n)
        sum += dy.data<double>()[n * K + k] * x.data<double>()[n * C + c];
      put(dw.tensor.data<double>()[k * C + c], sum, dw.mode);
    }
    double sum = 0;
    for (int64_t n = 0; n < N; ++n) sum += dy.data<double>()[n * K + k];
    if (db) put(db.tensor.data<double>()[k], sum, db.mode);
  }
}

}  // namespace oracle

namespace cpu {

void linear_fwd(Stream& stream, const Tensor& x, const Tensor& w, const Tensor& b, Tensor& y) {
  const int64_t N = x.dim(0), C = x.dim(1), K = w.dim(0);
  multiply(stream, N, K, C, {x, C, 1}, {w, 1, C}, b, y, GradMode::Overwrite);
}

void linear_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w, Grad dx) {
  const int64_t N = dy.dim(0), K = w.dim(0), C = w.dim(1);
  multiply(stream, N, C, K, {dy, K, 1}, {w, C, 1}, {}, dx.tensor, dx.mode);
}

void linear_bwd_weight(Stream& stream, const Tensor& x, const Tensor& dy, Grad dw, Grad db) {
  const int64_t N = x.dim(0), C = x.dim(1), K = dy.dim(1);
  if (dw) multiply(stream, K, C, N, {dy, 1, K}, {x, C, 1}, {}, dw.tensor, dw.mode);
  if (!db) return;
  with_storage(dy.dtype(), [&]<class T>() {
    for (int64_t k = 0; k < K; ++k) {
      float sum = 0;
      for (int64_t n = 0; n < N; ++n) sum += to_float(dy.data<T>()[n * K + k]);
      put(db.tensor.data<float>()[k], sum, db.mode);
    }
  });
}

}  // namespace cpu

ON_CUDA(linear_bwd_weight)
ON_CUDA(linear_bwd_data)
ON_CUDA(linear_fwd)

namespace {

void check_linear(const Tensor& x, const Tensor& w, const Tensor& y) {
  ENSURE(x.rank() == 2 && w.rank() == 2 && x.dim(1) == w.dim(1), "linear: x is ", x.shape(),
         ", w is ", w.shape());
  expect("linear: w", w, w.shape(), x.dtype());
  expect("linear: y", y, {x.dim(0), w.dim(0)}, x.dtype());
}

}  // namespace

void linear_fwd(Stream& stream, const Tensor& x, const Tensor& w, const Tensor& b, Tensor& y) {
  check_linear(x, w, y);
  expect_if("linear_fwd: b", b, {w.dim(0)}, master_of(x.dtype()));
  if (y.numel() == 0) return;
  DISPATCH(stream, x.dtype(), linear_fwd(stream, x, w, b, y));
}

void linear_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w, Grad dx) {
  if (!dx) return;
  check_linear(dx.tensor, w, dy);
  if (dy.numel() == 0) return start_sum(stream, dx);
  DISPATCH(stream, dy.dtype(), linear_bwd_data(stream, dy, w, dx));
}

void linear_bwd_weight(Stream& stream, const Tensor& x, const Tensor& dy, Grad dw, Grad db) {
  if (!dw && !db) return;
  ENSURE(x.rank() == 2 && dy.rank() == 2, "linear_bwd_weight: x is ", x.shape(), ", dy is ",
         dy.shape());
  expect("linear_bwd_weight: dy", dy, {x.dim(0), dy.dim(1)}, x.dtype());
  expect_if("linear_bwd_weight: dw", dw.tensor, {dy.dim(1), x.dim(1)}, master_of(x.dtype()));
  expect_if("linear_bwd_weight: db", db.tensor, {dy.dim(1)}, master_of(x.dtype()));
  if (dy.numel() == 0) {
    start_sum(stream, dw);
    start_sum(stream, db);
    return;
  }
  DISPATCH(stream, x.dtype(), linear_bwd_weight(stream, x, dy, dw, db));
}

}  // namespace tessera
