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
  with_storage(y.dtype(), [&]<class T>() {
    const T *left = a.data<T>(), *right = b.data<T>();
    put_all(y.data<T>(), y.numel(), GradMode::Overwrite,
            [=](int64_t i) { return to_float(left[i]) + to_float(right[i]); });
  });
}

void add_bwd(Stream&, const Tensor& dy, Grad dx) {
  with_storage(dy.dtype(), [&]<class T>() {
    const T* from = dy.data<T>();
    put_all(dx.tensor.data<T>(), dy.numel(), dx.mode, [=](int64_t i) { return to_float(from[i]); });
  });
}

// Calls f.operator()<T, Term>() for an image's type and that of what is added to it: the same, or
// f32.
template <class F>
void with_storages(DType image, DType term, F f) {
  with_storage(image, [&]<class T>() {
    term == image ? f.template operator()<T, T>() : f.template operator()<T, float>();
  });
}

void add_broadcast_fwd(Stream&, const Tensor& x, const Tensor& t, Tensor& y) {
  const int64_t C = x.dim(3), H = x.dim(1), W = x.dim(2);
  with_storages(x.dtype(), t.dtype(), [&]<class T, class Term>() {
    const T* from = x.data<T>();
    const Term* terms = t.data<Term>();
    T* to = y.data<T>();
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < x.dim(0) * H; ++r) {
      const Term* term = terms + r / H * C;
      for (int64_t i = r * W * C; i < (r + 1) * W * C; i += C)
        put_row(to + i, C, GradMode::Overwrite,
                [=](int64_t c) { return to_float(from[i + c]) + to_float(term[c]); });
    }
  });
}

constexpr int64_t kChannelBlock = 64;  // channels summed together

// Sums `lanes` channels, at most kChannelBlock, of an image [H,W,C] starting at `image`.
template <class T>
void sum_image(const T* image, int64_t H, int64_t W, int64_t C, int64_t lanes, double* total) {
  std::fill_n(total, kChannelBlock, 0.0);
  for (int64_t h = 0; h < H; ++h) {
    float row[kChannelBlock] = {};
    for (int64_t w = 0; w < W; ++w) {
      const T* pixel = image + (h * W + w) * C;
#pragma omp simd
      for (int64_t c = 0; c < lanes; ++c) row[c] += to_float(pixel[c]);
    }
    for (int64_t c = 0; c < lanes; ++c) total[c] += double(row[c]);
  }
}

void add_broadcast_bwd_t(Stream&, const Tensor& dy, Grad dt) {
  const int64_t N = dy.dim(0), H = dy.dim(1), W = dy.dim(2), C = dy.dim(3);
  with_storages(dy.dtype(), dt.tensor.dtype(), [&]<class T, class Term>() {
    const T* from = dy.data<T>();
    Term* to = dt.tensor.data<Term>();
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t n = 0; n < N; ++n)
      for (int64_t first = 0; first < C; first += kChannelBlock) {
        double total[kChannelBlock];
        const int64_t lanes = std::min(kChannelBlock, C - first);
        sum_image(from + n * H * W * C + first, H, W, C, lanes, total);
        put_row(to + n * C + first, lanes, dt.mode, [&](int64_t c) { return float(total[c]); });
      }
  });
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
