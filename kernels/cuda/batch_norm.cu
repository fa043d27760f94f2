// The running statistics of BatchNorm: a thread for each channel.
#include "kernels/cuda/kernel.h"

namespace tessera::TESSERA_CUDA {
namespace {

struct UpdateStatistics {
  float eps, momentum, unbiased;  // unbiased: count / (count - 1)
  const float* moments;
  float *mean, *var;
  __device__ void operator()(int64_t c) const {
    const float rstd = moments[2 * c + 1];
    // Far below eps it has an error of eps's last place, nothing beside the eps of evaluation.
    const float difference = 1.0f / (rstd * rstd) - eps;
    const float biased = difference < 0.0f ? 0.0f : difference;  // NaN stays
    mean[c] = (1.0f - momentum) * mean[c] + momentum * moments[2 * c];
    var[c] = (1.0f - momentum) * var[c] + momentum * (unbiased * biased);
  }
};

struct MomentsOfStatistics {
  float eps;
  const float *mean, *var;
  float* moments;
  __device__ void operator()(int64_t c) const {
    moments[2 * c] = mean[c];
    moments[2 * c + 1] = 1.0f / sqrtf(var[c] + eps);
  }
};

}  // namespace

void batch_norm_update(Stream& stream, const BatchNormSpec& spec, int64_t count,
                       const Tensor& moments, Tensor& mean, Tensor& var) {
  for_each(stream, mean.numel(),
           UpdateStatistics{spec.eps, spec.momentum, float(double(count) / double(count - 1)),
                            moments.data<float>(), mean.data<float>(), var.data<float>()});
}

void batch_norm_moments(Stream& stream, const BatchNormSpec& spec, const Tensor& mean,
                        const Tensor& var, Tensor& moments) {
  for_each(
      stream, mean.numel(),
      MomentsOfStatistics{spec.eps, mean.data<float>(), var.data<float>(), moments.data<float>()});
}

}  // namespace tessera::TESSERA_CUDA
