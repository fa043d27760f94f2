// Joining channels, and the same fused with nearest upsampling of the first part: what an up block
// does with its input and the skip. Runs of channels, bound by memory; fusing saves the upsampled
// tensor and its gradient, which are written and read once each otherwise.
#include <cstring>

#include "kernels/cpu/loops.h"

namespace tessera {
namespace oracle {

void concat_channels_fwd(Stream&, const Tensor& a, const Tensor& b, Tensor& y) {
  const int64_t A = a.dim(3), B = b.dim(3), C = A + B;
  for (int64_t i = 0; i < y.numel(); ++i) {
    const int64_t pixel = i / C, c = i % C;
    y.data<double>()[i] =
        c < A ? a.data<double>()[pixel * A + c] : b.data<double>()[pixel * B + c - A];
  }
}

void concat_channels_bwd(Stream&, const Tensor& dy, Grad da, Grad db) {
  const int64_t C = dy.dim(3), A = da ? da.tensor.dim(3) : C - db.tensor.dim(3), B = C - A;
  for (int64_t i = 0; i < dy.numel(); ++i) {
    const int64_t pixel = i / C, c = i % C;
    const double value = dy.data<double>()[i];
    if (c < A && da) put(da.tensor.data<double>()[pixel * A + c], value, da.mode);
    if (c >= A && db) put(db.tensor.data<double>()[pixel * B + c - A], value, db.mode);
  }
}

void concat_upsample_fwd(Stream&, const Tensor& low, const Tensor& skip, Tensor& y) {
  const Nhwc in("low", low), side("skip", skip), out("y", y);
  for (int64_t n = 0; n < out.N; ++n)
    for (int64_t h = 0; h < out.H; ++h)
      for (int64_t w = 0; w < out.W; ++w)
        for (int64_t c = 0; c < out.C; ++c)
          y.data<double>()[out.at(n, h, w, c)] =
              c < in.C ? low.data<double>()[in.at(n, h / 2, w / 2, c)]
                       : skip.data<double>()[side.at(n, h, w, c - in.C)];
}

namespace {

void add_patches(const Tensor& dy, Grad dlow) {
  const Nhwc in("dlow", dlow.tensor), out("dy", dy);
  for (int64_t n = 0; n < in.N; ++n)
    for (int64_t h = 0; h < in.H; ++h)
      for (int64_t w = 0; w < in.W; ++w)
        for (int64_t c = 0; c < in.C; ++c) {
          double sum = 0;
          for (int p = 0; p < 4; ++p)
            sum += dy.data<double>()[out.at(n, 2 * h + p / 2, 2 * w + p % 2, c)];
          put(dlow.tensor.data<double>()[in.at(n, h, w, c)], sum, dlow.mode);
        }
}

}  // namespace

void concat_upsample_bwd(Stream& stream, const Tensor& dy, Grad dlow, Grad dskip) {
  if (dlow) add_patches(dy, dlow);
  if (dskip) oracle::concat_channels_bwd(stream, dy, {}, dskip);
}

}  // namespace oracle

namespace cpu {

template <class T>
void copy_run(T* to, const T* from, int64_t n) {
  std::memcpy(to, from, size_t(n) * sizeof(T));
}

template <class T>
void put_run(T* to, const T* from, int64_t n, GradMode mode) {
  put_row(to, n, mode, [=](int64_t i) { return to_float(from[i]); });
}

void concat_channels_fwd(Stream&, const Tensor& a, const Tensor& b, Tensor& y) {
  const int64_t A = a.dim(3), B = b.dim(3), pixels = y.dim(0) * y.dim(1) * y.dim(2);
  with_storage(y.dtype(), [&]<class T>() {
    const T *from_a = a.data<T>(), *from_b = b.data<T>();
    T* to = y.data<T>();
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < pixels; ++i) {
      copy_run(to + i * (A + B), from_a + i * A, A);
      copy_run(to + i * (A + B) + A, from_b + i * B, B);
    }
  });
}

// part [N,H,W,B] = channels first .. first+B-1 of dy.
void take_channels(const Tensor& dy, int64_t first, Grad part) {
  const int64_t C = dy.dim(3), B = part.tensor.dim(3), pixels = dy.dim(0) * dy.dim(1) * dy.dim(2);
  with_storage(dy.dtype(), [&]<class T>() {
    const T* from = dy.data<T>() + first;
    T* to = part.tensor.data<T>();
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < pixels; ++i) put_run(to + i * B, from + i * C, B, part.mode);
  });
}

void concat_channels_bwd(Stream&, const Tensor& dy, Grad da, Grad db) {
  if (da) take_channels(dy, 0, da);
  if (db) take_channels(dy, dy.dim(3) - db.tensor.dim(3), db);
}

void concat_upsample_fwd(Stream&, const Tensor& low, const Tensor& skip, Tensor& y) {
  const Nhwc out("y", y);
  const int64_t A = low.dim(3), B = skip.dim(3), W = out.W;
  with_storage(y.dtype(), [&]<class T>() {
    const T *from_low = low.data<T>(), *from_skip = skip.data<T>();
    T* to = y.data<T>();
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < out.N * out.H; ++r)  // rows through the batch; H is even
      for (int64_t w = 0; w < W; ++w) {
        T* pixel = to + (r * W + w) * out.C;
        copy_run(pixel, from_low + (r / 2 * (W / 2) + w / 2) * A, A);
        copy_run(pixel + A, from_skip + (r * W + w) * B, B);
      }
  });
}

template <class T>
void split_patches(const Tensor& dy, Grad dlow, Grad dskip) {
  const Nhwc out("dy", dy);
  const int64_t A = dlow ? dlow.tensor.dim(3) : out.C - dskip.tensor.dim(3), B = out.C - A;
  const int64_t C = out.C, row = out.W * C;
  const T* from = dy.data<T>();
  T* low = dlow ? dlow.tensor.data<T>() : nullptr;
  T* skip = dskip ? dskip.tensor.data<T>() : nullptr;
#pragma omp parallel for schedule(static)
  for (int64_t patch = 0; patch < out.N * (out.H / 2) * (out.W / 2); ++patch) {
    const int64_t r = patch / (out.W / 2), w = 2 * (patch % (out.W / 2));
    const T *ab = from + 2 * r * row + w * C, *cd = ab + row;
    if (low)
      put_row(low + patch * A, A, dlow.mode, [=](int64_t c) {
        return (to_float(ab[c]) + to_float(ab[C + c])) + (to_float(cd[c]) + to_float(cd[C + c]));
      });
    if (skip)
      for (int p = 0; p < 4; ++p)
        put_run(skip + ((2 * r + p / 2) * out.W + w + p % 2) * B, (p < 2 ? ab : cd) + p % 2 * C + A,
                B, dskip.mode);
  }
}

void concat_upsample_bwd(Stream&, const Tensor& dy, Grad dlow, Grad dskip) {
  with_storage(dy.dtype(), [&]<class T>() { split_patches<T>(dy, dlow, dskip); });
}

}  // namespace cpu

ON_CUDA(concat_upsample_bwd)
ON_CUDA(concat_upsample_fwd)
ON_CUDA(concat_channels_bwd)
ON_CUDA(concat_channels_fwd)

void concat_channels_fwd(Stream& stream, const Tensor& a, const Tensor& b, Tensor& y) {
  const Nhwc first("concat_channels_fwd: a", a), second("concat_channels_fwd: b", b);
  expect("concat_channels_fwd: b", b, {first.N, first.H, first.W, second.C}, a.dtype());
  expect("concat_channels_fwd: y", y, {first.N, first.H, first.W, first.C + second.C}, a.dtype());
  DISPATCH(stream, a.dtype(), concat_channels_fwd(stream, a, b, y));
}

void concat_channels_bwd(Stream& stream, const Tensor& dy, Grad da, Grad db) {
  if (!da && !db) return;
  const Nhwc out("concat_channels_bwd: dy", dy);
  const Tensor& part = da ? da.tensor : db.tensor;
  const Nhwc given("concat_channels_bwd: gradient", part);
  const int64_t A = da ? given.C : out.C - given.C;
  ENSURE(given.C <= out.C, "concat_channels_bwd: ", part.shape(), " is no part of ", dy.shape());
  expect_if("concat_channels_bwd: da", da.tensor, {out.N, out.H, out.W, A}, dy.dtype());
  expect_if("concat_channels_bwd: db", db.tensor, {out.N, out.H, out.W, out.C - A}, dy.dtype());
  DISPATCH(stream, dy.dtype(), concat_channels_bwd(stream, dy, da, db));
}

void concat_upsample_fwd(Stream& stream, const Tensor& low, const Tensor& skip, Tensor& y) {
  const Nhwc in("concat_upsample_fwd: low", low), side("concat_upsample_fwd: skip", skip);
  expect("concat_upsample_fwd: skip", skip, {in.N, 2 * in.H, 2 * in.W, side.C}, low.dtype());
  expect("concat_upsample_fwd: y", y, {in.N, 2 * in.H, 2 * in.W, in.C + side.C}, low.dtype());
  DISPATCH(stream, low.dtype(), concat_upsample_fwd(stream, low, skip, y));
}

void concat_upsample_bwd(Stream& stream, const Tensor& dy, Grad dlow, Grad dskip) {
  if (!dlow && !dskip) return;
  const Nhwc out("concat_upsample_bwd: dy", dy);
  ENSURE(out.H % 2 == 0 && out.W % 2 == 0, "concat_upsample_bwd: dy is ", dy.shape(),
         ", expected even H and W");
  const Tensor& part = dlow ? dlow.tensor : dskip.tensor;
  const Nhwc given("concat_upsample_bwd: gradient", part);
  const int64_t A = dlow ? given.C : out.C - given.C;
  ENSURE(given.C <= out.C, "concat_upsample_bwd: ", part.shape(), " is no part of ", dy.shape());
  expect_if("concat_upsample_bwd: dlow", dlow.tensor, {out.N, out.H / 2, out.W / 2, A}, dy.dtype());
  expect_if("concat_upsample_bwd: dskip", dskip.tensor, {out.N, out.H, out.W, out.C - A},
            dy.dtype());
  DISPATCH(stream, dy.dtype(), concat_upsample_bwd(stream, dy, dlow, dskip));
}

}  // namespace tessera
