// conv2d: checks, dispatch and the f64 oracle; the fast paths are in winograd.h and convolve.h
// (oneDNN).
#include "kernels/composed.h"
#include "kernels/cpu/winograd.h"

namespace tessera {

ConvProblem ConvProblem::of(const ConvSpec& spec, const Shape& x, const Shape& w) {
  ENSURE(x.rank() == 4 && w.rank() == 4, "conv2d: x is ", x, ", w is ", w);
  ENSURE(x[3] == w[3], "conv2d: x has ", x[3], " channels, w takes ", w[3]);
  ENSURE(w[0] > 0 && w[3] > 0, "conv2d: w is ", w, ", expected at least one channel each way");
  ENSURE(w[1] > 0 && w[2] > 0, "conv2d: w is ", w, ", expected at least one tap");
  ENSURE(spec.stride >= 1 && spec.pad_h >= 0 && spec.pad_w >= 0, "conv2d: stride ", spec.stride,
         ", padding ", spec.pad_h, ' ', spec.pad_w);
  const int64_t rows = x[1] + int64_t{2} * spec.pad_h - w[1],
                columns = x[2] + int64_t{2} * spec.pad_w - w[2];
  ENSURE(rows >= 0 && columns >= 0, "conv2d: filter ", w, " is larger than the padded image ", x);
  return {
      x[0], x[1], x[2], x[3], w[0], w[1], w[2], rows / spec.stride + 1, columns / spec.stride + 1,
      spec};
}

namespace oracle {
namespace {

// Calls f(x index, w index, y index) for every product of the convolution.
template <class F>
void for_each_product(const ConvProblem& c, F f) {
  for (int64_t n = 0; n < c.N; ++n)
    for (int64_t p = 0; p < c.P; ++p)
      for (int64_t q = 0; q < c.Q; ++q)
        for (int64_t k = 0; k < c.K; ++k)
          for (int64_t r = 0; r < c.R; ++r)
            for (int64_t s = 0; s < c.S; ++s) {
              const int64_t h = p * c.spec.stride + r - c.spec.pad_h;
              const int64_t w = q * c.spec.stride + s - c.spec.pad_w;
              if (h < 0 || h >= c.H || w < 0 || w >= c.W) continue;
              const int64_t x0 = ((n * c.H + h) * c.W + w) * c.C;
              const int64_t w0 = ((k * c.R + r) * c.S + s) * c.C;
              const int64_t y = ((n * c.P + p) * c.Q + q) * c.K + k;
              for (int64_t i = 0; i < c.C; ++i) f(x0 + i, w0 + i, y);
            }
}

}  // namespace

void conv2d_fwd(Stream&, const ConvSpec& spec, const Tensor& x, const Tensor& w, const Tensor& b,
                Tensor& y, MomentsOut*) {
  const auto problem = ConvProblem::of(spec, x.shape(), w.shape());
  double* out = y.data<double>();
  for (int64_t i = 0; i < y.numel(); ++i) out[i] = b ? b.data<double>()[i % problem.K] : 0.0;
  const double *in = x.data<double>(), *filter = w.data<double>();
  for_each_product(problem, [&](int64_t i, int64_t j, int64_t k) { out[k] += in[i] * filter[j]; });
}

void conv2d_bwd_data(Stream& stream, const ConvSpec& spec, const Tensor& dy, const Tensor& w,
                     Grad dx, const FilterForms&) {
  start_sum(stream, dx);
  const double *out = dy.data<double>(), *filter = w.data<double>();
  double* in = dx.tensor.data<double>();
  for_each_product(ConvProblem::of(spec, dx.tensor.shape(), w.shape()),
                   [&](int64_t i, int64_t j, int64_t k) { in[i] += out[k] * filter[j]; });
}

void conv2d_bwd_weight(Stream& stream, const ConvSpec& spec, const Tensor& x, const Tensor& dy,
                       Grad dw, Grad db) {
  start_sum(stream, dw);
  const double *in = x.data<double>(), *out = dy.data<double>();
  double* filter = dw.tensor.data<double>();
  for_each_product(ConvProblem::of(spec, x.shape(), dw.tensor.shape()),
                   [&](int64_t i, int64_t j, int64_t k) { filter[j] += in[i] * out[k]; });
  if (!db) return;
  start_sum(stream, db);
  for (int64_t i = 0; i < dy.numel(); ++i) db.tensor.data<double>()[i % dy.dim(3)] += out[i];
}

}  // namespace oracle

namespace cpu {
namespace {

// Calls step(problem, n) for the images of p, n the first of problem.N: a few at a time where they
// are widened.
template <class Step>
void for_images(Stream& stream, ConvProblem p, const Tensor& x, Step step) {
  const int64_t N = p.N, count = is_widened(stream, x) ? images_at_once(stream, p) : N;
  for (int64_t n = 0; n < N; n += count) {
    p.N = std::min(count, N - n);
    step(p, n);
  }
}

}  // namespace

void conv2d_fwd(Stream& stream, const ConvSpec& spec, const Tensor& x, const Tensor& w,
                const Tensor& b, Tensor& y, MomentsOut*) {
  const auto whole = ConvProblem::of(spec, x.shape(), w.shape());
  if (goes_by_winograd(stream, whole, x)) return winograd_fwd(stream, whole, {{x}}, w, b, y);
  const FilterView filter = FilterView::of(operand(stream, w));
  for_images(stream, whole, x, [&](const ConvProblem& p, int64_t n) {
    convolve(stream, p, operand(stream, images(x, n, p.N)), filter, b, images(y, n, p.N));
  });
}

void conv2d_bwd_data(Stream& stream, const ConvSpec& spec, const Tensor& dy, const Tensor& w,
                     Grad dx, const FilterForms&) {
  const auto whole = ConvProblem::of(spec, dx.tensor.shape(), w.shape());
  if (goes_by_winograd(stream, whole, dy))
    return winograd_bwd_data(stream, whole, dy, w, {{dx.tensor, 0, false, dx.mode}});
  const FilterView filter = FilterView::of(operand(stream, w));
  for_images(stream, whole, dy, [&](const ConvProblem& p, int64_t n) {
    convolve_bwd_data(stream, p, operand(stream, images(dy, n, p.N)), filter,
                      {images(dx.tensor, n, p.N), dx.mode});
  });
}

void conv2d_bwd_weight(Stream& stream, const ConvSpec& spec, const Tensor& x, const Tensor& dy,
                       Grad dw, Grad db) {
  const auto whole = ConvProblem::of(spec, x.shape(), dw.tensor.shape());
  if (goes_by_winograd(stream, whole, x))
    return winograd_bwd_weight(stream, whole, {{x}}, dy, dw, db);
  for_images(stream, whole, x, [&](const ConvProblem& p, int64_t n) {
    convolve_bwd_weight(stream, p, operand(stream, images(x, n, p.N)),
                        operand(stream, images(dy, n, p.N)), FilterView::of(dw.tensor), dw.mode,
                        db);
    dw.mode = db.mode = GradMode::Accumulate;
  });
}

}  // namespace cpu

ON_CUDA(conv2d_bwd_weight)
ON_CUDA(conv2d_bwd_data)
ON_CUDA(conv2d_fwd)

void conv2d_fwd(Stream& stream, const ConvSpec& spec, const Tensor& x, const Tensor& w,
                const Tensor& b, Tensor& y, MomentsOut* moments) {
  const auto problem = ConvProblem::of(spec, x.shape(), w.shape());
  expect("conv2d_fwd: w", w, w.shape(), x.dtype());
  expect_if("conv2d_fwd: b", b, {problem.K}, master_of(x.dtype()));
  expect("conv2d_fwd: y", y, problem.y(), x.dtype());
  if (moments) expect_moments(*moments, y);
  if (y.numel() == 0) return;
  DISPATCH(stream, x.dtype(), conv2d_fwd(stream, spec, x, w, b, y, moments));
}

void conv2d_bwd_data(Stream& stream, const ConvSpec& spec, const Tensor& dy, const Tensor& w,
                     Grad dx, const FilterForms& forms) {
  if (!dx) return;
  const auto problem = ConvProblem::of(spec, dx.tensor.shape(), w.shape());
  expect("conv2d_bwd_data: dy", dy, problem.y(), w.dtype());
  expect("conv2d_bwd_data: dx", dx.tensor, problem.x(), w.dtype());
  expect_if("conv2d_bwd_data: turned", forms.turned, {problem.C, problem.R, problem.S, problem.K},
            DType::bf16);
  if (dx.tensor.numel() == 0) return;
  if (dy.numel() == 0) return start_sum(stream, dx);
  DISPATCH(stream, dy.dtype(), conv2d_bwd_data(stream, spec, dy, w, dx, forms));
}

void conv2d_bwd_weight(Stream& stream, const ConvSpec& spec, const Tensor& x, const Tensor& dy,
                       Grad dw, Grad db) {
  if (!dw && !db) return;
  if (!dw) {  // how large dy has to be nobody knows
    expect("conv2d_bwd_weight: dy", dy, {x.dim(0), dy.dim(1), dy.dim(2), dy.dim(3)}, x.dtype());
    expect("conv2d_bwd_weight: db", db.tensor, {dy.dim(3)}, master_of(x.dtype()));
    return composed::sum_pixels(stream, dy, db);
  }
  const auto problem = ConvProblem::of(spec, x.shape(), dw.tensor.shape());
  expect("conv2d_bwd_weight: dy", dy, problem.y(), x.dtype());
  expect("conv2d_bwd_weight: dw", dw.tensor, problem.w(), master_of(x.dtype()));
  expect_if("conv2d_bwd_weight: db", db.tensor, {problem.K}, master_of(x.dtype()));
  if (dy.numel() == 0) {
    start_sum(stream, dw);
    start_sum(stream, db);
    return;
  }
  DISPATCH(stream, x.dtype(), conv2d_bwd_weight(stream, spec, x, dy, dw, db));
}

}  // namespace tessera
