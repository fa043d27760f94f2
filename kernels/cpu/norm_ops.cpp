// group_norm and group_norm_act: checks, dispatch, and the f64 oracle. The fused oracle is written
// as the composition of the plain ones. The fast loops are in group_norm.cpp.
#include <cmath>

#include "kernels/composed.h"
#include "kernels/cpu/group_norm.h"
#include "kernels/cpu/loops.h"
#include "kernels/image_cut.h"

namespace tessera {
namespace oracle {
namespace {

// xhat = (x - mean) * rstd of one element.
double normalized(const Tensor& x, const Tensor& moments, int64_t n, int64_t p, int64_t c) {
  const int64_t P = x.dim(1) * x.dim(2), C = x.dim(3), G = moments.dim(1);
  const double* m = moments.data<double>() + (n * G + c / (C / G)) * 2;
  return (x.data<double>()[(n * P + p) * C + c] - m[0]) * m[1];
}

// Mean and rstd of D channels of x [P,C].
void group_moments(const double* x, int64_t P, int64_t C, int64_t D, float eps, double* m) {
  double mean = 0, variance = 0;
  for (int64_t p = 0; p < P; ++p)
    for (int64_t c = 0; c < D; ++c) mean += x[p * C + c];
  mean /= double(P * D);
  for (int64_t p = 0; p < P; ++p)
    for (int64_t c = 0; c < D; ++c) variance += std::pow(x[p * C + c] - mean, 2);
  m[0] = mean;
  m[1] = 1 / std::sqrt(variance / double(P * D) + eps);
}

}  // namespace

void group_norm_fwd(Stream&, const GroupNormSpec& spec, const Tensor& x, const Tensor& gamma,
                    const Tensor& beta, Tensor& y, Tensor& moments, bool known) {
  const int64_t N = x.dim(0), P = x.dim(1) * x.dim(2), C = x.dim(3), G = spec.groups, D = C / G;
  for (int64_t n = 0; n < N; ++n)
    for (int64_t g = 0; g < G; ++g) {
      if (!known)
        group_moments(x.data<double>() + n * P * C + g * D, P, C, D, spec.eps,
                      moments.data<double>() + (n * G + g) * 2);
      for (int64_t p = 0; p < P; ++p)
        for (int64_t c = g * D; c < (g + 1) * D; ++c)
          y.data<double>()[(n * P + p) * C + c] =
              normalized(x, moments, n, p, c) * gamma.data<double>()[c] + beta.data<double>()[c];
    }
}

void group_norm_bwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x,
                    const Tensor& moments, const Tensor& gamma, const Tensor& dy, Grad dx,
                    Grad dgamma, Grad dbeta) {
  const int64_t N = x.dim(0), P = x.dim(1) * x.dim(2), C = x.dim(3), G = spec.groups, D = C / G;
  Tensor sums = Tensor::zeros(stream, {2, C}, DType::f64);
  double *sum_dy = sums.data<double>(), *sum_dy_xhat = sum_dy + C;
  for (int64_t n = 0; n < N; ++n)
    for (int64_t g = 0; g < G; ++g) {
      double m1 = 0, m2 = 0;
      for (int64_t p = 0; p < P; ++p)
        for (int64_t c = g * D; c < (g + 1) * D; ++c) {
          const double d = dy.data<double>()[(n * P + p) * C + c];
          const double xhat = normalized(x, moments, n, p, c);
          sum_dy[c] += d;
          sum_dy_xhat[c] += d * xhat;
          m1 += d * gamma.data<double>()[c] / double(P * D);
          m2 += d * gamma.data<double>()[c] * xhat / double(P * D);
        }
      if (!dx) continue;
      const double rstd = moments.data<double>()[(n * G + g) * 2 + 1];
      for (int64_t p = 0; p < P; ++p)
        for (int64_t c = g * D; c < (g + 1) * D; ++c) {
          const int64_t i = (n * P + p) * C + c;
          const double d = dy.data<double>()[i] * gamma.data<double>()[c];
          put(dx.tensor.data<double>()[i], rstd * (d - m1 - normalized(x, moments, n, p, c) * m2),
              dx.mode);
        }
    }
  for (int64_t c = 0; c < C; ++c) {
    if (dgamma) put(dgamma.tensor.data<double>()[c], sum_dy_xhat[c], dgamma.mode);
    if (dbeta) put(dbeta.tensor.data<double>()[c], sum_dy[c], dbeta.mode);
  }
}

void group_norm_act_fwd(Stream& stream, const NormAct& spec, const Tensor& x, const Tensor& gamma,
                        const Tensor& beta, const Tensor& t, const Tensor& residual, Tensor& y,
                        Tensor& moments, bool known) {
  Tensor z = Tensor::empty(stream, x.shape(), DType::f64);
  tessera::group_norm_fwd(stream, spec.norm, x, gamma, beta, z, moments, known);
  if (t) tessera::add_broadcast_fwd(stream, z, t, z);
  tessera::activation_fwd(stream, spec.act, z, y);
  if (residual) tessera::add_fwd(stream, y, residual, y);
}

void group_norm_act_bwd(Stream& stream, const NormAct& spec, const Tensor& x, const Tensor& moments,
                        const Tensor& gamma, const Tensor& beta, const Tensor& t, const Tensor& dy,
                        Grad dx, Grad dgamma, Grad dbeta, Grad dt, const Tensor& h) {
  Tensor z = Tensor::empty(stream, x.shape(), DType::f64);
  Tensor dz = Tensor::empty(stream, x.shape(), DType::f64);
  Tensor given = moments;
  tessera::group_norm_fwd(stream, spec.norm, x, gamma, beta, z, given, /*known=*/true);
  if (t) tessera::add_broadcast_fwd(stream, z, t, z);
  tessera::activation_bwd(stream, spec.act, z, dy, {dz, GradMode::Overwrite});
  if (dt) tessera::add_broadcast_bwd_t(stream, dz, dt);
  tessera::group_norm_bwd(stream, spec.norm, x, moments, gamma, dz, dx, dgamma, dbeta);
  if (Tensor to = h) tessera::activation_fwd(stream, spec.act, z, to);
}

using composed::norm_act_conv2d_bwd;

}  // namespace oracle

namespace cpu {

using composed::norm_act_conv2d_bwd;

NormShape shape_of(const GroupNormSpec& spec, const Tensor& x) {
  return {x.dim(0), x.dim(1) * x.dim(2), x.dim(3), spec.groups, spec.eps};
}

// One image with a group for each channel, as BatchNorm sees a batch.
bool is_batch(const NormShape& s) { return s.N == 1 && s.G == s.C; }

// What is left out of the fused operation may be undefined.
template <class T>
NormArgs<T> args_of(const Tensor& x, const Tensor& gamma, const Tensor& beta, const Tensor& t = {},
                    const Tensor& residual = {}) {
  return {x.data<T>(), gamma.data<float>(), beta.data<float>(), t ? t.data<T>() : nullptr,
          residual ? residual.data<T>() : nullptr};
}

void group_norm_fwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x, const Tensor& gamma,
                    const Tensor& beta, Tensor& y, Tensor& moments, bool known) {
  const NormShape shape = shape_of(spec, x);
  float* m = moments.data<float>();
  with_storage(x.dtype(), [&]<class T>() {
    const auto in = args_of<T>(x, gamma, beta);
    if (is_batch(shape)) return channel_norm_fwd(stream, shape, in, y.data<T>(), m, known);
    norm_act_fwd(stream, shape, std::nullopt, in, y.data<T>(), m, known);
  });
}

void group_norm_bwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x,
                    const Tensor& moments, const Tensor& gamma, const Tensor& dy, Grad dx,
                    Grad dgamma, Grad dbeta) {
  const NormShape shape = shape_of(spec, x);
  // beta shifts z only, and without an activation z does not matter: gamma stands in for it.
  const float* m = moments.data<float>();
  with_storage(x.dtype(), [&]<class T>() {
    const auto in = args_of<T>(x, gamma, gamma);
    const T* up = dy.data<T>();
    if (is_batch(shape)) return channel_norm_bwd(stream, shape, in, m, up, dx, dgamma, dbeta);
    norm_act_bwd(stream, shape, std::nullopt, in, m, up, dx, dgamma, dbeta, {});
  });
}

void group_norm_act_fwd(Stream& stream, const NormAct& spec, const Tensor& x, const Tensor& gamma,
                        const Tensor& beta, const Tensor& t, const Tensor& residual, Tensor& y,
                        Tensor& moments, bool known) {
  with_storage(x.dtype(), [&]<class T>() {
    norm_act_fwd(stream, shape_of(spec.norm, x), spec.act, args_of<T>(x, gamma, beta, t, residual),
                 y.data<T>(), moments.data<float>(), known);
  });
}

void group_norm_act_bwd(Stream& stream, const NormAct& spec, const Tensor& x, const Tensor& moments,
                        const Tensor& gamma, const Tensor& beta, const Tensor& t, const Tensor& dy,
                        Grad dx, Grad dgamma, Grad dbeta, Grad dt, const Tensor& h) {
  with_storage(x.dtype(), [&]<class T>() {
    norm_act_bwd(stream, shape_of(spec.norm, x), spec.act, args_of<T>(x, gamma, beta, t),
                 moments.data<float>(), dy.data<T>(), dx, dgamma, dbeta, dt);
  });
  if (h) composed::activated(stream, spec, x, moments, gamma, beta, t, h);
}

}  // namespace cpu

ON_CUDA(norm_act_conv2d_bwd)
ON_CUDA(group_norm_act_bwd)
ON_CUDA(group_norm_act_fwd)
ON_CUDA(group_norm_bwd)
ON_CUDA(group_norm_fwd)

namespace {

void check_groups(const GroupNormSpec& spec, const Shape& x) {
  ENSURE(x.rank() == 4, "group_norm: x is ", x, ", expected [N,H,W,C]");
  ENSURE(spec.groups > 0 && x[3] % spec.groups == 0, "group_norm: ", x[3], " channels in ",
         spec.groups, " groups");
}

void check_norm(const GroupNormSpec& spec, const Tensor& x, const Tensor& gamma,
                const Tensor& moments) {
  check_groups(spec, x.shape());
  ENSURE(x.dim(0) == 0 || x.numel() > 0, "group_norm: the mean of no elements, x is ", x.shape());
  expect("group_norm: gamma", gamma, {x.dim(3)}, master_of(x.dtype()));
  expect("group_norm: moments", moments, {x.dim(0), spec.groups, 2}, master_of(x.dtype()));
}

void check_apart(const Grad& dgamma, const Grad& dbeta) {
  ENSURE(!dgamma || !dbeta || dgamma.tensor.raw() != dbeta.tensor.raw(),
         "group_norm: dgamma and dbeta are one tensor");
}

}  // namespace

void group_norm_fwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x, const Tensor& gamma,
                    const Tensor& beta, Tensor& y, Tensor& moments, bool known) {
  check_norm(spec, x, gamma, moments);
  expect("group_norm_fwd: beta", beta, gamma.shape(), master_of(x.dtype()));
  expect("group_norm_fwd: y", y, x.shape(), x.dtype());
  DISPATCH(stream, x.dtype(), group_norm_fwd(stream, spec, x, gamma, beta, y, moments, known));
}

void group_norm_bwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x,
                    const Tensor& moments, const Tensor& gamma, const Tensor& dy, Grad dx,
                    Grad dgamma, Grad dbeta) {
  check_norm(spec, x, gamma, moments);
  expect("group_norm_bwd: dy", dy, x.shape(), x.dtype());
  expect_if("group_norm_bwd: dx", dx.tensor, x.shape(), x.dtype());
  expect_if("group_norm_bwd: dgamma", dgamma.tensor, gamma.shape(), master_of(x.dtype()));
  expect_if("group_norm_bwd: dbeta", dbeta.tensor, gamma.shape(), master_of(x.dtype()));
  check_apart(dgamma, dbeta);
  DISPATCH(stream, x.dtype(),
           group_norm_bwd(stream, spec, x, moments, gamma, dy, dx, dgamma, dbeta));
}

void group_norm_act_fwd(Stream& stream, const NormAct& spec, const Tensor& x, const Tensor& gamma,
                        const Tensor& beta, const Tensor& t, const Tensor& residual, Tensor& y,
                        Tensor& moments, bool known) {
  check_norm(spec.norm, x, gamma, moments);
  expect("group_norm_act_fwd: beta", beta, gamma.shape(), master_of(x.dtype()));
  expect_if("group_norm_act_fwd: t", t, {x.dim(0), x.dim(3)}, x.dtype());
  expect_if("group_norm_act_fwd: residual", residual, x.shape(), x.dtype());
  expect("group_norm_act_fwd: y", y, x.shape(), x.dtype());
  DISPATCH(stream, x.dtype(),
           group_norm_act_fwd(stream, spec, x, gamma, beta, t, residual, y, moments, known));
}

void group_norm_act_bwd(Stream& stream, const NormAct& spec, const Tensor& x, const Tensor& moments,
                        const Tensor& gamma, const Tensor& beta, const Tensor& t, const Tensor& dy,
                        Grad dx, Grad dgamma, Grad dbeta, Grad dt, const Tensor& h) {
  check_norm(spec.norm, x, gamma, moments);
  expect("group_norm_act_bwd: beta", beta, gamma.shape(), master_of(x.dtype()));
  expect_if("group_norm_act_bwd: t", t, {x.dim(0), x.dim(3)}, x.dtype());
  expect("group_norm_act_bwd: dy", dy, x.shape(), x.dtype());
  expect_if("group_norm_act_bwd: dx", dx.tensor, x.shape(), x.dtype());
  expect_if("group_norm_act_bwd: dgamma", dgamma.tensor, gamma.shape(), master_of(x.dtype()));
  expect_if("group_norm_act_bwd: dbeta", dbeta.tensor, gamma.shape(), master_of(x.dtype()));
  check_apart(dgamma, dbeta);
  expect_if("group_norm_act_bwd: dt", dt.tensor, {x.dim(0), x.dim(3)}, x.dtype());
  expect_if("group_norm_act_bwd: h", h, x.shape(), x.dtype());
  DISPATCH(
      stream, x.dtype(),
      group_norm_act_bwd(stream, spec, x, moments, gamma, beta, t, dy, dx, dgamma, dbeta, dt, h));
}

bool norm_by_images(Stream& stream, const GroupNormSpec& spec, const Shape& x, DType dtype) {
  check_groups(spec, x);
  return ImageCut::of(stream.device().info(), x, dtype, spec.groups, ImageCut::kMostTensors)
      .has_value();
}

void norm_act_conv2d_bwd(Stream& stream, const NormAct& spec, const ConvSpec& conv, const Tensor& x,
                         const Tensor& moments, const Tensor& gamma, const Tensor& beta,
                         const Tensor& t, const Tensor& w, const Tensor& dy, Grad dx, Grad dgamma,
                         Grad dbeta, Grad dt, const FilterForms& forms) {
  check_norm(spec.norm, x, gamma, moments);
  const auto problem = ConvProblem::of(conv, x.shape(), w.shape());
  expect("norm_act_conv2d_bwd: beta", beta, gamma.shape(), master_of(x.dtype()));
  expect_if("norm_act_conv2d_bwd: t", t, {x.dim(0), x.dim(3)}, x.dtype());
  expect("norm_act_conv2d_bwd: w", w, w.shape(), x.dtype());
  expect("norm_act_conv2d_bwd: dy", dy, problem.y(), x.dtype());
  expect_if("norm_act_conv2d_bwd: dx", dx.tensor, x.shape(), x.dtype());
  expect_if("norm_act_conv2d_bwd: dgamma", dgamma.tensor, gamma.shape(), master_of(x.dtype()));
  expect_if("norm_act_conv2d_bwd: dbeta", dbeta.tensor, gamma.shape(), master_of(x.dtype()));
  check_apart(dgamma, dbeta);
  expect_if("norm_act_conv2d_bwd: dt", dt.tensor, {x.dim(0), x.dim(3)}, x.dtype());
  expect_if("norm_act_conv2d_bwd: turned", forms.turned,
            {problem.C, problem.R, problem.S, problem.K}, DType::bf16);
  if (dy.numel() == 0)
    return composed::norm_act_conv2d_bwd(stream, spec, conv, x, moments, gamma, beta, t, w, dy, dx,
                                         dgamma, dbeta, dt, forms);
  DISPATCH(stream, x.dtype(),
           norm_act_conv2d_bwd(stream, spec, conv, x, moments, gamma, beta, t, w, dy, dx, dgamma,
                               dbeta, dt, forms));
}

}  // namespace tessera
