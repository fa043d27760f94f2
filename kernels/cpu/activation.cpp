// Activations, elementwise and memory bound once vectorised (activation_math.h).
#include <cmath>
#include <numbers>

#include "kernels/cpu/activation_math.h"
#include "kernels/cpu/loops.h"

namespace tessera {
namespace oracle {
namespace {

double cdf(double x) { return 0.5 * std::erfc(-x * std::numbers::sqrt2 / 2); }
double inner(double x) { return std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x); }

double value_of(Activation act, double x) {
  if (act == Activation::Relu) return x < 0 ? 0 : x;
  return act == Activation::Gelu ? x * cdf(x) : 0.5 * x * (1 + std::tanh(inner(x)));
}

double derivative_of(Activation act, double x) {
  if (act == Activation::Relu) return x <= 0 ? 0 : 1;
  if (act == Activation::Gelu)
    return cdf(x) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * std::numbers::pi);
  const double t = std::tanh(inner(x));
  const double slope = std::sqrt(2 / std::numbers::pi) * (1 + 3 * 0.044715 * x * x);
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope;
}

}  // namespace

void activation_fwd(Stream&, Activation act, const Tensor& x, Tensor& y) {
  for (int64_t i = 0; i < x.numel(); ++i) y.data<double>()[i] = value_of(act, x.data<double>()[i]);
}

void activation_bwd(Stream&, Activation act, const Tensor& x, const Tensor& dy, Grad dx) {
  for (int64_t i = 0; i < x.numel(); ++i)
    put(dx.tensor.data<double>()[i], dy.data<double>()[i] * derivative_of(act, x.data<double>()[i]),
        dx.mode);
}

}  // namespace oracle

namespace cpu {

void activation_fwd(Stream&, Activation act, const Tensor& x, Tensor& y) {
  with_storage(x.dtype(), [&]<class T>() {
    const T* from = x.data<T>();
    with_activation(act, [&]<Activation a>() {
      put_all(y.data<T>(), x.numel(), GradMode::Overwrite,
              [from](int64_t i) { return Act<a>::value(to_float(from[i])); });
    });
  });
}

void activation_bwd(Stream&, Activation act, const Tensor& x, const Tensor& dy, Grad dx) {
  with_storage(x.dtype(), [&]<class T>() {
    const T *from = x.data<T>(), *up = dy.data<T>();
    with_activation(act, [&]<Activation a>() {
      put_all(dx.tensor.data<T>(), x.numel(), dx.mode, [from, up](int64_t i) {
        return to_float(up[i]) * Act<a>::derivative(to_float(from[i]));
      });
    });
  });
}

}  // namespace cpu

ON_CUDA(activation_fwd)
ON_CUDA(activation_bwd)

void activation_fwd(Stream& stream, Activation act, const Tensor& x, Tensor& y) {
  expect("activation_fwd: y", y, x.shape(), x.dtype());
  DISPATCH(stream, x.dtype(), activation_fwd(stream, act, x, y));
}

void activation_bwd(Stream& stream, Activation act, const Tensor& x, const Tensor& dy, Grad dx) {
  if (!dx) return;
  expect("activation_bwd: dy", dy, x.shape(), x.dtype());
  expect("activation_bwd: dx", dx.tensor, x.shape(), x.dtype());
  DISPATCH(stream, x.dtype(), activation_bwd(stream, act, x, dy, dx));
}

}  // namespace tessera
