// The optimizer's two passes over the flat arenas, bound by memory (adam_step reads four floats and
// writes three per parameter). As torch.optim.Adam and AdamW, with g the clipped gradient:
//   p *= 1 - lr wd;  m = beta1 m + (1-beta1) g;  v = beta2 v + (1-beta2) g^2
//   p -= lr / (1-beta1^step) * m / (sqrt(v) / sqrt(1-beta2^step) + eps)
#include "kernels/adam.h"

#include <cmath>

#include "kernels/cpu/loops.h"

namespace tessera {
namespace {

template <class T>
T clip_of(const AdamSpec& spec, const Tensor& norm) {
  if (spec.max_norm <= 0) return 1;
  const double scale = spec.max_norm / (double(norm.data<T>()[0]) + 1e-6);
  return scale >= 1 ? T(1) : T(scale);  // NaN stays NaN
}

// Whether this update takes place; sets the latch.
template <class T>
bool passes_latch(int64_t step, AdamTensors& t) {
  if (!t.latch) return true;
  int64_t& latch = t.latch.data<int64_t>()[0];
  const bool finite =
      std::isfinite(t.norm.data<T>()[0]) && (!t.loss || std::isfinite(t.loss.data<T>()[0]));
  if (latch == 0 && !finite) latch = step;
  return latch == 0;
}

}  // namespace

namespace oracle {

void grad_norm(Stream&, const Tensor& grads, Tensor& norm) {
  double sum = 0;
  for (int64_t i = 0; i < grads.numel(); ++i)
    sum += grads.data<double>()[i] * grads.data<double>()[i];
  norm.data<double>()[0] = std::sqrt(sum);
}

void adam_step(Stream&, const AdamSpec& spec, int64_t step, AdamTensors t) {
  if (!passes_latch<double>(step, t)) return;
  const AdamFactors<double> f(spec, step);
  const double clip = clip_of<double>(spec, t.norm);
  for (int64_t i = 0; i < t.grads.numel(); ++i) {
    const double g = clip * t.grads.data<double>()[i];
    double &p = t.params.data<double>()[i], &mean = t.m.data<double>()[i],
           &square = t.v.data<double>()[i];
    mean = f.beta1 * mean + f.one_minus_beta1 * g;
    square = f.beta2 * square + f.one_minus_beta2 * g * g;
    p = f.decay * p - f.step_size * mean / (std::sqrt(square) / f.root_correction2 + f.eps);
    if (t.copies) t.copies.data<bf16>()[i] = to_bf16(float(p));
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

void copy_rounded(Stream&, const Tensor& params, Tensor& copies) {
  const float* from = params.data<float>();
  bf16* to = copies.data<bf16>();
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < params.numel(); ++i) to[i] = to_bf16(from[i]);
}

void adam_step(Stream&, const AdamSpec& spec, int64_t step, AdamTensors t) {
  AdamFactors<float> f(spec, step);
  if (t.now) {
    step = t.now.data<int64_t>()[0];
    f = *reinterpret_cast<const AdamFactors<float>*>(t.factors.data<float>());
  }
  if (!passes_latch<float>(step, t)) return;
  const float clip = clip_of<float>(spec, t.norm);
  const float* grad = t.grads.data<float>();
  float *p = t.params.data<float>(), *mean = t.m.data<float>(), *square = t.v.data<float>();
  bf16* copy = t.copies ? t.copies.data<bf16>() : nullptr;
  const int64_t n = t.grads.numel();
#pragma omp parallel for schedule(static)
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t end = std::min(n, first + kBlock);
#pragma omp simd
    for (int64_t i = first; i < end; ++i) {
      const float g = clip * grad[i];
      mean[i] = f.beta1 * mean[i] + f.one_minus_beta1 * g;
      square[i] = f.beta2 * square[i] + f.one_minus_beta2 * g * g;
      const float denominator = std::sqrt(square[i]) / f.root_correction2 + f.eps;
      p[i] = f.decay * p[i] - f.step_size * mean[i] / denominator;
    }
    for (int64_t i = first; copy && i < end; ++i) copy[i] = to_bf16(p[i]);
  }
}

}  // namespace cpu

namespace oracle {

using cpu::copy_rounded;  // DISPATCH names it; never called, for masters in f64 have no copies

}  // namespace oracle

ON_CUDA(adam_step)
ON_CUDA(copy_rounded)
ON_CUDA(grad_norm)

void grad_norm(Stream& stream, const Tensor& grads, Tensor& norm) {
  expect("grad_norm: norm", norm, {1}, grads.dtype());
  DISPATCH(stream, grads.dtype(), grad_norm(stream, grads, norm));
}

void adam_step(Stream& stream, const AdamSpec& spec, int64_t step, AdamTensors t) {
  ENSURE(step >= 1, "adam_step: steps are counted from 1, not ", step);
  ENSURE(t.now.defined() == t.factors.defined(), "adam_step: now and factors come together");
  const Shape& shape = t.grads.shape();
  const DType dtype = t.grads.dtype();
  // The oracle goes by `step`.
  ENSURE(!t.now || dtype == DType::f32, "adam_step: now and factors are of updates in f32, not ",
         name_of(dtype));
  if (spec.max_norm > 0 || t.latch) expect("adam_step: norm", t.norm, {1}, dtype);
  expect("adam_step: params", t.params, shape, dtype);
  expect("adam_step: m", t.m, shape, dtype);
  expect("adam_step: v", t.v, shape, dtype);
  expect_if("adam_step: copies", t.copies, shape, DType::bf16);
  expect_if("adam_step: latch", t.latch, {1}, DType::i64);
  expect_if("adam_step: loss", t.loss, {1}, dtype);
  expect_if("adam_step: now", t.now, {1}, DType::i64);
  expect_if("adam_step: factors", t.factors, {AdamFactors<float>::kCount}, DType::f32);
  DISPATCH(stream, dtype, adam_step(stream, spec, step, t));
}

void copy_rounded(Stream& stream, const Tensor& params, Tensor& copies) {
  expect("copy_rounded: params", params, params.shape(), DType::f32);
  expect("copy_rounded: copies", copies, params.shape(), DType::bf16);
  DISPATCH(stream, DType::f32, copy_rounded(stream, params, copies));
}

}  // namespace tessera
