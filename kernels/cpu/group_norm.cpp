// GroupNorm, alone or fused with + t, an activation and + residual. x [N,P,C] with P = H*W is f32
// or bf16, all arithmetic is f32.
//
// Forward, per image: one pass sums every channel (shifted by the first pixel, so that a large mean
// costs no precision), the moments of a group are merged from its channels, and a second pass,
// which finds the image in the cache, applies y = act(a[c] x + b[c]) + residual. Backward, per
// image: z = a x + b is recomputed; the first pass stores dz = dy act'(z) where dx will be (in a
// workspace if that is no f32) and sums S1 = sum dz, S2 = sum dz xhat per channel; the second is
// linear: dx = a dz + p x + q. dbeta = dt = S1 and dgamma = S2, summed over the images. Work is
// split over images.
#include <omp.h>

#include <algorithm>
#include <cmath>

#include "kernels/cpu/activation_math.h"
#include "kernels/cpu/group_norm.h"
#include "kernels/cpu/loops.h"

namespace tessera::cpu {
namespace {

constexpr int64_t kPixels = 64;  // whose sums are held in float before they go to double

struct None {
  static float value(float z) { return z; }
  static float derivative(float) { return 1.0f; }
};

// What a thread needs beside the image: rows of C floats and of C doubles, and an image of P pixels
// unless P is 0; from the pool, taken before the threads start.
class Scratch {
 public:
  Scratch(Stream& stream, int64_t C, int64_t P = 0)
      : C_(C),
        P_(P),
        floats_(Tensor::empty(stream, {stream.device().threads(), kRows + P, C})),
        doubles_(Tensor::empty(stream, {stream.device().threads(), 2, C}, DType::f64)) {}

  // Row i of the calling thread.
  float* row(int64_t i) {
    return floats_.data<float>() + (omp_get_thread_num() * (kRows + P_) + i) * C_;
  }
  float* image() { return P_ ? row(kRows) : nullptr; }
  double* sums() { return doubles_.data<double>() + omp_get_thread_num() * 2 * C_; }

 private:
  static constexpr int kRows = 7;
  int64_t C_, P_;
  Tensor floats_, doubles_;
};

// a and b of y = act(a[c] x + b[c]) for one image.
template <class T>
void scale_and_shift(const NormShape& s, const float* moments, const float* gamma,
                     const float* beta, const T* t, float* a, float* b) {
  for (int64_t c = 0; c < s.C; ++c) {
    const float mean = moments[c / s.per_group() * 2], rstd = moments[c / s.per_group() * 2 + 1];
    a[c] = rstd * gamma[c];
    b[c] = beta[c] - mean * a[c] + (t ? to_float(t[c]) : 0.0f);
  }
}

// Mean and rstd of every group of one image x [P,C].
template <class T>
void image_moments(const NormShape& s, const T* x, float* moments, Scratch& scratch) {
  float *sum = scratch.row(0), *square = scratch.row(1), *first_pixel = scratch.row(6);
  double* total = scratch.sums();
  std::fill(total, total + 2 * s.C, 0.0);
  for (int64_t c = 0; c < s.C; ++c) first_pixel[c] = to_float(x[c]);
  for (int64_t first = 0; first < s.P; first += kPixels) {
    std::fill(sum, sum + 2 * s.C, 0.0f);  // square is the next row
    for (int64_t p = first; p < std::min(first + kPixels, s.P); ++p) {
#pragma omp simd
      for (int64_t c = 0; c < s.C; ++c) {
        const float d = to_float(x[p * s.C + c]) - first_pixel[c];
        sum[c] += d;
        square[c] += d * d;
      }
    }
    for (int64_t c = 0; c < 2 * s.C; ++c) total[c] += sum[c];
  }
  for (int64_t g = 0; g < s.G; ++g) {
    const int64_t begin = g * s.per_group(), end = begin + s.per_group();
    double mean = 0, m2 = 0;  // m2: sum of squared deviations from the group's mean
    for (int64_t c = begin; c < end; ++c) mean += first_pixel[c] + total[c] / double(s.P);
    mean /= double(s.per_group());
    for (int64_t c = begin; c < end; ++c) {
      const double offset = total[c] / double(s.P), away = first_pixel[c] + offset - mean;
      m2 += total[s.C + c] - total[c] * offset + double(s.P) * away * away;
    }
    moments[2 * g] = float(mean);
    moments[2 * g + 1] =
        float(1.0 / std::sqrt(std::max(m2, 0.0) / double(s.P * s.per_group()) + s.eps));
  }
}

template <class Act, class T>
void forward(const NormShape& s, const NormArgs<T>& in, T* y, float* moments, bool known,
             Scratch& scratch) {
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < s.N; ++n) {
    float *a = scratch.row(2), *b = scratch.row(3);
    const T* x = in.x + n * s.P * s.C;
    T* out = y + n * s.P * s.C;
    if (!known) image_moments(s, x, moments + n * s.G * 2, scratch);
    scale_and_shift(s, moments + n * s.G * 2, in.gamma, in.beta, in.t ? in.t + n * s.C : nullptr, a,
                    b);
    const T* residual = in.residual ? in.residual + n * s.P * s.C : nullptr;
    for (int64_t p = 0; p < s.P; ++p) {
      const int64_t i = p * s.C;
      if (residual) {
#pragma omp simd
        for (int64_t c = 0; c < s.C; ++c)
          out[i + c] =
              stored<T>(Act::value(a[c] * to_float(x[i + c]) + b[c]) + to_float(residual[i + c]));
      } else {
#pragma omp simd
        for (int64_t c = 0; c < s.C; ++c)
          out[i + c] = stored<T>(Act::value(a[c] * to_float(x[i + c]) + b[c]));
      }
    }
  }
}

// dz = dy act'(a x + b); s1 and s2 [C] receive the sums of dz and of dz * xhat of one image.
template <class Act, class T>
void image_dz(const NormShape& s, const T* x, const T* dy, const float* moments, const float* a,
              const float* b, float* dz, double* s1, double* s2, Scratch& scratch) {
  float *sum = scratch.row(0), *product = scratch.row(1), *mean = scratch.row(6);
  for (int64_t c = 0; c < s.C; ++c) mean[c] = moments[c / s.per_group() * 2];
  std::fill(s1, s1 + s.C, 0.0);
  std::fill(s2, s2 + s.C, 0.0);
  for (int64_t first = 0; first < s.P; first += kPixels) {
    std::fill(sum, sum + 2 * s.C, 0.0f);  // product is the next row
    for (int64_t i = first * s.C; i < std::min(first + kPixels, s.P) * s.C; i += s.C) {
#pragma omp simd
      for (int64_t c = 0; c < s.C; ++c) {
        const float at = to_float(x[i + c]);
        const float d = to_float(dy[i + c]) * Act::derivative(a[c] * at + b[c]);
        dz[i + c] = d;
        sum[c] += d;
        product[c] += d * (at - mean[c]);
      }
    }
    for (int64_t c = 0; c < s.C; ++c) s1[c] += sum[c], s2[c] += product[c];
  }
  for (int64_t c = 0; c < s.C; ++c) s2[c] *= moments[c / s.per_group() * 2 + 1];
}

// p and q of dx = a[c] dz + p[c] x + q[c], from
// dx = rstd (gamma dz - mean_group(gamma dz) - xhat mean_group(gamma dz xhat)).
void input_gradient_terms(const NormShape& s, const float* moments, const float* gamma,
                          const double* s1, const double* s2, float* p, float* q) {
  for (int64_t g = 0; g < s.G; ++g) {
    const int64_t begin = g * s.per_group(), end = begin + s.per_group();
    double m1 = 0, m2 = 0;
    for (int64_t c = begin; c < end; ++c) m1 += gamma[c] * s1[c], m2 += gamma[c] * s2[c];
    const double mean = moments[2 * g], rstd = moments[2 * g + 1];
    m1 /= double(s.P * s.per_group());
    m2 /= double(s.P * s.per_group());
    for (int64_t c = begin; c < end; ++c) {
      p[c] = float(-rstd * rstd * m2);
      q[c] = float(rstd * (rstd * m2 * mean - m1));
    }
  }
}

template <class Act, class T>
void backward(const NormShape& s, const NormArgs<T>& in, const float* moments, const T* dy, Grad dx,
              double* sums, Scratch& scratch) {
  T* gradient = dx ? dx.tensor.data<T>() : nullptr;
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < s.N; ++n) {
    float *a = scratch.row(2), *b = scratch.row(3), *p = scratch.row(4), *q = scratch.row(5);
    const int64_t image = n * s.P * s.C;
    const T* x = in.x + image;
    const float* m = moments + n * s.G * 2;
    double *s1 = sums + n * 2 * s.C, *s2 = s1 + s.C;
    float* dz = scratch.image();
    if constexpr (std::is_same_v<T, float>)
      if (!dz) dz = gradient + image;
    scale_and_shift(s, m, in.gamma, in.beta, in.t ? in.t + n * s.C : nullptr, a, b);
    image_dz<Act>(s, x, dy + image, m, a, b, dz, s1, s2, scratch);
    if (!dx) continue;
    input_gradient_terms(s, m, in.gamma, s1, s2, p, q);
    for (int64_t i = 0; i < s.P * s.C; i += s.C)
      put_row(gradient + image + i, s.C, dx.mode,
              [=](int64_t c) { return a[c] * dz[i + c] + p[c] * to_float(x[i + c]) + q[c]; });
  }
}

}  // namespace

template <class T>
void norm_act_fwd(Stream& stream, const NormShape& s, MaybeAct act, const NormArgs<T>& in, T* y,
                  float* moments, bool known) {
  auto* run = act ? with_activation(*act, []<Activation a>() { return &forward<Act<a>, T>; })
                  : &forward<None, T>;
  Scratch scratch(stream, s.C);
  run(s, in, y, moments, known, scratch);
}

template <class T>
void norm_act_bwd(Stream& stream, const NormShape& s, MaybeAct act, const NormArgs<T>& in,
                  const float* moments, const T* dy, Grad dx, Grad dgamma, Grad dbeta, Grad dt) {
  auto* run = act ? with_activation(*act, []<Activation a>() { return &backward<Act<a>, T>; })
                  : &backward<None, T>;
  // dz lives where dx will be, unless dx is no f32, holds a sum already or is not wanted.
  const bool in_place = std::is_same_v<T, float> && dx && dx.mode == GradMode::Overwrite;
  Tensor sums = Tensor::empty(stream, {s.N, 2, s.C}, DType::f64);
  Scratch scratch(stream, s.C, in_place ? 0 : s.P);
  run(s, in, moments, dy, dx, sums.data<double>(), scratch);

  const double* total = sums.data<double>();
  for (int64_t c = 0; c < s.C; ++c) {
    double s1 = 0, s2 = 0;
    for (int64_t n = 0; n < s.N; ++n) {
      s1 += total[n * 2 * s.C + c];
      s2 += total[n * 2 * s.C + s.C + c];
      if (dt) put(dt.tensor.data<T>()[n * s.C + c], float(total[n * 2 * s.C + c]), dt.mode);
    }
    if (dgamma) put(dgamma.tensor.data<float>()[c], float(s2), dgamma.mode);
    if (dbeta) put(dbeta.tensor.data<float>()[c], float(s1), dbeta.mode);
  }
}

template decltype(norm_act_fwd<float>) norm_act_fwd<float>;
template decltype(norm_act_fwd<bf16>) norm_act_fwd<bf16>;
template decltype(norm_act_bwd<float>) norm_act_bwd<float>;
template decltype(norm_act_bwd<bf16>) norm_act_bwd<bf16>;

}  // namespace tessera::cpu
