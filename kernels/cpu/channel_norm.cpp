// GroupNorm of one image with a group for each channel, which a BatchNorm is: x [P,C], f32 or bf16.
// As in group_norm.cpp, but threads share the pixels: blocks of them, whose sums are added in
// order.
#include <cmath>

#include "kernels/cpu/group_norm.h"
#include "kernels/cpu/loops.h"

namespace tessera::cpu {
namespace {

constexpr int64_t kBlockPixels = 256, kHeld = 64;  // kHeld: sums are held in float for so many

// Calls f(block, first element, end) by all threads.
template <class F>
void for_each_block(const NormShape& s, F f) {
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < ceil_div(s.P, kBlockPixels); ++block)
    f(block, block * kBlockPixels * s.C, std::min((block + 1) * kBlockPixels, s.P) * s.C);
}

// Two sums a channel, [2,C] f64, of what add(pixel's first element, sums, sums) adds in float.
template <class Add>
Tensor pixel_sums(Stream& stream, const NormShape& s, Add add) {
  const int64_t blocks = ceil_div(s.P, kBlockPixels), C = s.C;
  Tensor held = Tensor::empty(stream, {blocks, 2, C});
  Tensor totals = Tensor::zeros(stream, {blocks, 2, C}, DType::f64);
  for_each_block(s, [&](int64_t block, int64_t begin, int64_t end) {
    float* sum = held.data<float>() + block * 2 * C;
    double* total = totals.data<double>() + block * 2 * C;
    for (int64_t first = begin; first < end; first += kHeld * C) {
      std::fill(sum, sum + 2 * C, 0.0f);
      for (int64_t i = first; i < std::min(first + kHeld * C, end); i += C) add(i, sum, sum + C);
      for (int64_t c = 0; c < 2 * C; ++c) total[c] += double(sum[c]);
    }
  });
  double* total = totals.data<double>();
  for (int64_t block = 1; block < blocks; ++block)
    for (int64_t c = 0; c < 2 * C; ++c) total[c] += total[block * 2 * C + c];
  return totals.slice(0, {2, C});
}

// Mean and rstd of every channel; sums are of what is left of the first pixel.
template <class T>
void channel_moments(Stream& stream, const NormShape& s, const T* x, float* moments) {
  const int64_t C = s.C;
  const Tensor sums = pixel_sums(stream, s, [=](int64_t i, float* sum, float* square) {
#pragma omp simd
    for (int64_t c = 0; c < C; ++c) {
      const float d = to_float(x[i + c]) - to_float(x[c]);
      sum[c] += d;
      square[c] += d * d;
    }
  });
  const double *sum = sums.data<double>(), *square = sum + C, P = double(s.P);
  for (int64_t c = 0; c < C; ++c) {
    const double offset = sum[c] / P, m2 = square[c] - sum[c] * offset;
    moments[2 * c] = float(double(to_float(x[c])) + offset);
    moments[2 * c + 1] = float(1.0 / std::sqrt(std::max(m2, 0.0) / P + double(s.eps)));
  }
}

}  // namespace

template <class T>
void channel_norm_fwd(Stream& stream, const NormShape& s, const NormArgs<T>& in, T* y,
                      float* moments, bool known) {
  const int64_t C = s.C;
  if (!known) channel_moments(stream, s, in.x, moments);
  Tensor terms = Tensor::empty(stream, {2, C});
  float *a = terms.data<float>(), *b = a + C;
  for (int64_t c = 0; c < C; ++c) {
    a[c] = moments[2 * c + 1] * in.gamma[c];
    b[c] = in.beta[c] - moments[2 * c] * a[c];
  }
  for_each_block(s, [=](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += C)
      put_row(y + i, C, GradMode::Overwrite,
              [=](int64_t c) { return a[c] * to_float(in.x[i + c]) + b[c]; });
  });
}

template <class T>
void channel_norm_bwd(Stream& stream, const NormShape& s, const NormArgs<T>& in,
                      const float* moments, const T* dy, Grad dx, Grad dgamma, Grad dbeta) {
  const int64_t C = s.C;
  Tensor terms = Tensor::empty(stream, {4, C});
  float *mean = terms.data<float>(), *a = mean + C, *p = a + C, *q = p + C;
  for (int64_t c = 0; c < C; ++c) mean[c] = moments[2 * c];
  const Tensor sums = pixel_sums(stream, s, [=](int64_t i, float* sum, float* product) {
#pragma omp simd
    for (int64_t c = 0; c < C; ++c) {
      const float d = to_float(dy[i + c]);
      sum[c] += d;
      product[c] += d * (to_float(in.x[i + c]) - mean[c]);
    }
  });
  const double *sum = sums.data<double>(), *product = sum + C, P = double(s.P);
  for (int64_t c = 0; c < C; ++c) {
    const double rstd = double(moments[2 * c + 1]), s2 = product[c] * rstd;
    if (dgamma) put(dgamma.tensor.data<float>()[c], float(s2), dgamma.mode);
    if (dbeta) put(dbeta.tensor.data<float>()[c], float(sum[c]), dbeta.mode);
    // dx = rstd gamma (dy - mean(dy) - xhat mean(dy xhat)) = a dy + p x + q
    const double scale = rstd * double(in.gamma[c]) / P;
    a[c] = moments[2 * c + 1] * in.gamma[c];
    p[c] = float(-scale * rstd * s2);
    q[c] = float(scale * (rstd * s2 * double(mean[c]) - sum[c]));
  }
  if (!dx) return;
  T* to = dx.tensor.data<T>();
  for_each_block(s, [=](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += C)
      put_row(to + i, C, dx.mode, [=](int64_t c) {
        return a[c] * to_float(dy[i + c]) + p[c] * to_float(in.x[i + c]) + q[c];
      });
  });
}

template decltype(channel_norm_fwd<float>) channel_norm_fwd<float>;
template decltype(channel_norm_fwd<bf16>) channel_norm_fwd<bf16>;
template decltype(channel_norm_bwd<float>) channel_norm_bwd<float>;
template decltype(channel_norm_bwd<bf16>) channel_norm_bwd<bf16>;

}  // namespace tessera::cpu
