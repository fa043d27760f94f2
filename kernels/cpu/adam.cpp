// The optimizer's two passes over the flat arenas, bound by memory (adam_step reads four floats and
// writes three per parameter). As torch.optim.Adam and AdamW, with g the clipped gradient:
//   p *= 1 - lr wd;  m = beta1 m + (1-beta1) g;  v = beta2 v + (1-beta2) g^2
//   p -= lr / (1-beta1^step) * m / (sqrt(v) / sqrt(1-beta2^step) + eps)
#include <cmath>

#include "kernels/cpu/loops.h"

namespace tessera {
namespace {

// The factors of one step, the same for all parameters, calculated in double as PyTorch does.
template <class T>
struct AdamFactors {
  T clip, decay, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, root_correction2, eps;

  AdamFactors(const AdamSpec& spec, int64_t step, const Tensor& norm)
      : clip(1),
        decay(T(1 - spec.lr * spec.weight_decay)),
        beta1(T(spec.beta1)),
        one_minus_beta1(T(1 - spec.beta1)),
        beta2(T(spec.beta2)),
        one_minus_beta2(T(1 - spec.beta2)),
        step_size(T(spec.lr / (1 - std::pow(spec.beta1, double(step))))),
        root_correction2(T(std::sqrt(1 - std::pow(spec.beta2, double(step))))),
        eps(T(spec.eps)) {
    if (spec.max_norm <= 0) return;
    const double scale = spec.max_norm / (double(norm.data<T>()[0]) + 1e-6);
    clip = scale >= 1 ? T(1) : T(scale);  // NaN stays NaN
  }
};

}  // namespace

namespace oracle {

void grad_norm(Stream&, const Tensor& grads, Tensor& norm) {
  double sum = 0;
  for (int64_t i = 0; i < grads.numel(); ++i)
    sum += grads.data<double>()[i] * grads.data<double>()[i];
  norm.data<double>()[0] = std::sqrt(sum);
}

void adam_step(Stream&, const AdamSpec& spec, int64_t step, const Tensor& grads, const Tensor& norm,
               Tensor& params, Tensor& m, Tensor& v) {
  const AdamFactors<double> f(spec, step, norm);
  for (int64_t i = 0; i < grads.numel(); ++i) {
    const double g = f.clip * grads.data<double>()[i];
    double &p = params.data<double>()[i], &mean = m.data<double>()[i],
           &square = v.data<double>()[i];
    mean = f.beta1 * mean + f.one_minus_beta1 * g;
    square = f.beta2 * square + f.one_minus_beta2 * g * g;
    p = f.decay * p - f.step_size * mean / (std::sqrt(square) / f.root_correction2 + f.eps);
  }
}

}  // namespace oracle

namespace cpu {

void grad_norm(Stream& stream, const Tensor& grads, Tensor& norm) {
  const float* g = grads.data<float>();
  const double sum =
      block_sum(stream, grads.numel(), [=](int64_t i) { return double(g[i]) * double(g[i]); });
  norm.data<float>()[0] = float(std::sqrt(sum));
}

void adam_step(Stream&, const AdamSpec& spec, int64_t step, const Tensor& grads, const Tensor& norm,
               Tensor& params, Tensor& m, Tensor& v) {
  const AdamFactors<float> f(spec, step, norm);
  const float* grad = grads.data<float>();
  float *p = params.data<float>(), *mean = m.data<float>(), *square = v.data<float>();
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < grads.numel(); ++i) {
    const float g = f.clip * grad[i];
    mean[i] = f.beta1 * mean[i] + f.one_minus_beta1 * g;
    square[i] = f.beta2 * square[i] + f.one_minus_beta2 * g * g;
    const float denominator = std::sqrt(square[i]) / f.root_correction2 + f.eps;
    p[i] = f.decay * p[i] - f.step_size * mean[i] / denominator;
  }
}

}  // namespace cpu

void grad_norm(Stream& stream, const Tensor& grads, Tensor& norm) {
  expect("grad_norm: norm", norm, {1}, grads.dtype());
  DISPATCH(stream, grads.dtype(), grad_norm(stream, grads, norm));
}

void adam_step(Stream& stream, const AdamSpec& spec, int64_t step, const Tensor& grads,
               const Tensor& norm, Tensor& params, Tensor& m, Tensor& v) {
  ENSURE(step >= 1, "adam_step: steps are counted from 1, not ", step);
  if (spec.max_norm > 0) expect("adam_step: norm", norm, {1}, grads.dtype());
  expect("adam_step: params", params, grads.shape(), grads.dtype());
  expect("adam_step: m", m, grads.shape(), grads.dtype());
  expect("adam_step: v", v, grads.shape(), grads.dtype());
  DISPATCH(stream, grads.dtype(), adam_step(stream, spec, step, grads, norm, params, m, v));
}

}  // namespace tessera
