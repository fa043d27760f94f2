// GELU, elementwise and memory bound once vectorised (gelu_math.h).
#include <cmath>
#include <numbers>

#include "kernels/cpu/gelu_math.h"
#include "kernels/dispatch.h"

namespace tessera {
namespace oracle {

double cdf(double x) { return 0.5 * std::erfc(-x * std::numbers::sqrt2 / 2); }
double inner(double x) { return std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x); }

double gelu(GeluForm form, double x) {
  return form == GeluForm::Exact ? x * cdf(x) : 0.5 * x * (1 + std::tanh(inner(x)));
}

double gelu_derivative(GeluForm form, double x) {
  if (form == GeluForm::Exact)
    return cdf(x) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * std::numbers::pi);
  const double t = std::tanh(inner(x));
  const double slope = std::sqrt(2 / std::numbers::pi) * (1 + 3 * 0.044715 * x * x);
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope;
}

void gelu_fwd(Stream&, GeluForm form, const Tensor& x, Tensor& y) {
  for (int64_t i = 0; i < x.numel(); ++i) y.data<double>()[i] = gelu(form, x.data<double>()[i]);
}

void gelu_bwd(Stream&, GeluForm form, const Tensor& x, const Tensor& dy, Grad dx) {
  for (int64_t i = 0; i < x.numel(); ++i)
    put(dx.tensor.data<double>()[i],
        dy.data<double>()[i] * gelu_derivative(form, x.data<double>()[i]), dx.mode);
}

}  // namespace oracle

namespace cpu {

template <GeluForm form>
void gelu_loop(const float* x, float* y, int64_t n) {
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < n; ++i) y[i] = gelu<form>(x[i]);
}

template <GeluForm form>
void gelu_bwd_loop(const float* x, const float* dy, float* dx, int64_t n, GradMode mode) {
  if (mode == GradMode::Overwrite) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; ++i) dx[i] = dy[i] * gelu_derivative<form>(x[i]);
  } else {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; ++i) dx[i] += dy[i] * gelu_derivative<form>(x[i]);
  }
}

void gelu_fwd(Stream&, GeluForm form, const Tensor& x, Tensor& y) {
  auto* loop = form == GeluForm::Exact ? gelu_loop<GeluForm::Exact> : gelu_loop<GeluForm::Tanh>;
  loop(x.data<float>(), y.data<float>(), x.numel());
}

void gelu_bwd(Stream&, GeluForm form, const Tensor& x, const Tensor& dy, Grad dx) {
  auto* loop =
      form == GeluForm::Exact ? gelu_bwd_loop<GeluForm::Exact> : gelu_bwd_loop<GeluForm::Tanh>;
  loop(x.data<float>(), dy.data<float>(), dx.tensor.data<float>(), x.numel(), dx.mode);
}

}  // namespace cpu

ON_CUDA(gelu_fwd)
ON_CUDA(gelu_bwd)

void gelu_fwd(Stream& stream, GeluForm form, const Tensor& x, Tensor& y) {
  expect("gelu_fwd: y", y, x.shape(), x.dtype());
  DISPATCH(stream, x.dtype(), gelu_fwd(stream, form, x, y));
}

void gelu_bwd(Stream& stream, GeluForm form, const Tensor& x, const Tensor& dy, Grad dx) {
  if (!dx) return;
  expect("gelu_bwd: dy", dy, x.shape(), x.dtype());
  expect("gelu_bwd: dx", dx.tensor, x.shape(), x.dtype());
  DISPATCH(stream, x.dtype(), gelu_bwd(stream, form, x, dy, dx));
}

}  // namespace tessera
