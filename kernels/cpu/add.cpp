// Sums: elementwise, and with one value per sample and channel, broadcast over the image. Bound by
// memory. The broadcast's gradient adds the pixels of an image row in float and the rows in double,
// in order.
#include "kernels/cpu/loops.h"

namespace tessera {
namespace oracle {

void add_fwd(Stream&, const Tensor& a, const Tensor& b, Tensor& y) {
  for (int64_t i = 0; i < y.numel(); ++i)
    y.data<double>()[i] = a.data<double>()[i] + b.data<double>()[i];
}

void add_bwd(Stream&, const Tensor& dy, Grad dx) {
  for (int64_t i = 0; i < dy.numel(); ++i)
    put(dx.tensor.data<double>()[i], dy.data<double>()[i], dx.mode);
}

void add_broadcast_fwd(Stream&, const Tensor& x, const Tensor& t, Tensor& y) {
  const int64_t C = x.dim(3), image = x.dim(1) * x.dim(2) * C;
  for (int64_t i = 0; i < x.numel(); ++i)
    y.data<double>()[i] = x.data<double>()[i] + t.data<double>()[i / image * C + i % C];
}

void add_broadcast_bwd_t(Stream&, const Tensor& dy, Grad dt) {
  const int64_t C = dy.dim(3), pixels = dy.dim(1) * dy.dim(2);
  for (int64_t n = 0; n < dy.dim(0); ++n)
    for (int64_t c = 0; c < C; ++c) {
      double sum = 0;
      for (int64_t i = 0; i < pixels; ++i) sum += dy.data<double>()[(n * pixels + i) * C + c];
      put(dt.tensor.data<double>()[n * C + c], sum, dt.mode);
    }
}

}  // namespace oracle

namespace cpu {

void add_fwd(Stream&, const Tensor& a, const Tensor& b, Tensor& y) {
  const float *left = a.data<float>(), *right = b.data<float>();
  put_all(y.data<float>(), y.numel(), GradMode::Overwrite,
          [=](int64_t i) { return left[i] + right[i]; });
}

void add_bwd(Stream&, const Tensor& dy, Grad dx) {
  const float* from = dy.data<float>();
  put_all(dx.tensor.data<float>(), dy.numel(), dx.mode, [=](int64_t i) { return from[i]; });
}

void add_broadcast_fwd(Stream&, const Tensor& x, const Tensor& t, Tensor& y) {
  const int64_t C = x.dim(3), H = x.dim(1), W = x.dim(2);
  const float *from = x.data<float>(), *bias = t.data<float>();
  float* to = y.data<float>();
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < x.dim(0) * H; ++r) {
    const float* term = bias + r / H * C;
    for (int64_t i = r * W * C; i < (r + 1) * W * C; i += C)
      put_row(to + i, C, GradMode::Overwrite, [=](int64_t c) { return from[i + c] + term[c]; });
  }
}

constexpr int64_t kChannelBlock = 64;  // channels summed together

// Sums `lanes` channels, at most kChannelBlock, of an image [H,W,C] starting at `image`.
void sum_image(const float* image, int64_t H, int64_t W, int64_t C, int64_t lanes, double* total) {
  std::fill_n(total, kChannelBlock, 0.0);
  for (int64_t h = 0; h < H; ++h) {
    float row[kChannelBlock] = {};
    for (int64_t w = 0; w < W; ++w) {
      const float* pixel = image + (h * W + w) * C;
#pragma omp simd
      for (int64_t c = 0; c < lanes; ++c) row[c] += pixel[c];
    }
    for (int64_t c = 0; c < lanes; ++c) total[c] += double(row[c]);
  }
}

void add_broadcast_bwd_t(Stream&, const Tensor& dy, Grad dt) {
  const int64_t N = dy.dim(0), H = dy.dim(1), W = dy.dim(2), C = dy.dim(3);
  const float* from = dy.data<float>();
  float* to = dt.tensor.data<float>();
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t n = 0; n < N; ++n)
    for (int64_t first = 0; first < C; first += kChannelBlock) {
      double total[kChannelBlock];
      const int64_t lanes = std::min(kChannelBlock, C - first);
      sum_image(from + n * H * W * C + first, H, W, C, lanes, total);
      put_row(to + n * C + first, lanes, dt.mode, [&](int64_t c) { return float(total[c]); });
    }
}

}  // namespace cpu

ON_CUDA(add_broadcast_bwd_t)
ON_CUDA(add_broadcast_fwd)
ON_CUDA(add_bwd)
ON_CUDA(add_fwd)

void add_fwd(Stream& stream, const Tensor& a, const Tensor& b, Tensor& y) {
  expect("add_fwd: b", b, a.shape(), a.dtype());
  expect("add_fwd: y", y, a.shape(), a.dtype());
  DISPATCH(stream, a.dtype(), add_fwd(stream, a, b, y));
}

void add_bwd(Stream& stream, const Tensor& dy, Grad dx) {
  if (!dx) return;
  expect("add_bwd: dx", dx.tensor, dy.shape(), dy.dtype());
  DISPATCH(stream, dy.dtype(), add_bwd(stream, dy, dx));
}

void add_broadcast_fwd(Stream& stream, const Tensor& x, const Tensor& t, Tensor& y) {
  const Nhwc in("add_broadcast_fwd: x", x);
  expect("add_broadcast_fwd: t", t, {in.N, in.C},
         t && t.dtype() == master_of(x.dtype()) ? t.dtype() : x.dtype());
  expect("add_broadcast_fwd: y", y, x.shape(), x.dtype());
  DISPATCH(stream, x.dtype(), add_broadcast_fwd(stream, x, t, y));
}

void add_broadcast_bwd_t(Stream& stream, const Tensor& dy, Grad dt) {
  if (!dt) return;
  const Nhwc out("add_broadcast_bwd_t: dy", dy);
  expect("add_broadcast_bwd_t: dt", dt.tensor, {out.N, out.C},
         dt.tensor.dtype() == master_of(dy.dtype()) ? dt.tensor.dtype() : dy.dtype());
  DISPATCH(stream, dy.dtype(), add_broadcast_bwd_t(stream, dy, dt));
}

}  // namespace tessera
