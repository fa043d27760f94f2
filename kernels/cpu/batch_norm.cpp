// What BatchNorm has beside the norm: its running statistics.
#include <algorithm>
#include <cmath>

#include "kernels/dispatch.h"

namespace tessera {
namespace {

// A biased variance from rstd = 1/sqrt(variance + eps). One far below eps comes with an error of
// eps's last place, which is nothing beside the eps that evaluation adds to it.
template <class T>
T variance_of(T rstd, T eps) {
  return std::max(1 / (rstd * rstd) - eps, T(0));
}

template <class T>
void update(const BatchNormSpec& spec, int64_t count, const Tensor& moments, Tensor& mean,
            Tensor& var) {
  const T* m = moments.data<T>();
  const T momentum = T(spec.momentum), unbiased = T(double(count) / double(count - 1));
  T *means = mean.data<T>(), *vars = var.data<T>();
  for (int64_t c = 0; c < mean.numel(); ++c) {
    means[c] = (1 - momentum) * means[c] + momentum * m[2 * c];
    vars[c] =
        (1 - momentum) * vars[c] + momentum * (unbiased * variance_of(m[2 * c + 1], T(spec.eps)));
  }
}

template <class T>
void moments_of(const BatchNormSpec& spec, const Tensor& mean, const Tensor& var, Tensor& moments) {
  T* m = moments.data<T>();
  for (int64_t c = 0; c < mean.numel(); ++c) {
    m[2 * c] = mean.data<T>()[c];
    m[2 * c + 1] = 1 / std::sqrt(var.data<T>()[c] + T(spec.eps));
  }
}

}  // namespace

// A few numbers a channel: the same loops in both types.
namespace oracle {

void batch_norm_update(Stream&, const BatchNormSpec& spec, int64_t count, const Tensor& moments,
                       Tensor& mean, Tensor& var) {
  update<double>(spec, count, moments, mean, var);
}
void batch_norm_moments(Stream&, const BatchNormSpec& spec, const Tensor& mean, const Tensor& var,
                        Tensor& moments) {
  moments_of<double>(spec, mean, var, moments);
}

}  // namespace oracle

namespace cpu {

void batch_norm_update(Stream&, const BatchNormSpec& spec, int64_t count, const Tensor& moments,
                       Tensor& mean, Tensor& var) {
  update<float>(spec, count, moments, mean, var);
}
void batch_norm_moments(Stream&, const BatchNormSpec& spec, const Tensor& mean, const Tensor& var,
                        Tensor& moments) {
  moments_of<float>(spec, mean, var, moments);
}

}  // namespace cpu

ON_CUDA(batch_norm_moments)
ON_CUDA(batch_norm_update)

namespace {

void check_statistics(const Tensor& moments, const Tensor& mean, const Tensor& var) {
  ENSURE(moments.rank() == 3, "batch_norm: moments is ", moments.shape(), ", expected [1,C,2]");
  const int64_t C = moments.dim(1);
  expect("batch_norm: moments", moments, {1, C, 2}, moments.dtype());
  expect("batch_norm: mean", mean, {C}, moments.dtype());
  expect("batch_norm: var", var, {C}, moments.dtype());
}

}  // namespace

void batch_norm_update(Stream& stream, const BatchNormSpec& spec, int64_t count,
                       const Tensor& moments, Tensor& mean, Tensor& var) {
  check_statistics(moments, mean, var);
  ENSURE(count > 1, "batch_norm_update: ", count, " values a channel, expected at least two");
  DISPATCH(stream, mean.dtype(), batch_norm_update(stream, spec, count, moments, mean, var));
}

void batch_norm_moments(Stream& stream, const BatchNormSpec& spec, const Tensor& mean,
                        const Tensor& var, Tensor& moments) {
  check_statistics(moments, mean, var);
  DISPATCH(stream, mean.dtype(), batch_norm_moments(stream, spec, mean, var, moments));
}

}  // namespace tessera
