// Rearrangements between space and channels, and nearest upsampling by two. Pure copies and sums of
// four, bound by memory: whole runs of channels at a time, rows of pixels shared among the threads.
// Rows are counted through the batch: row r of the small tensor belongs to the rows 2r and 2r+1 of
// the large one, whose height is even.
#include <cstring>

#include "kernels/cpu/loops.h"

namespace tessera {
namespace oracle {
namespace {

// Calls copy(index in the [N,H,W,C] tensor, index in the [N,H/2,W/2,4C] tensor) for every element.
template <class Copy>
void for_each_pair(const Nhwc& space, const Nhwc& channels, Copy copy) {
  for (int64_t n = 0; n < space.N; ++n)
    for (int64_t h = 0; h < space.H; ++h)
      for (int64_t w = 0; w < space.W; ++w)
        for (int64_t c = 0; c < space.C; ++c)
          copy(space.at(n, h, w, c), channels.at(n, h / 2, w / 2, c * 4 + (h % 2) * 2 + w % 2));
}

}  // namespace

void space_to_channel(Stream&, const Tensor& x, Grad y) {
  const double* from = x.data<double>();
  double* to = y.tensor.data<double>();
  for_each_pair({"x", x}, {"y", y.tensor},
                [&](int64_t i, int64_t j) { put(to[j], from[i], y.mode); });
}

void channel_to_space(Stream&, const Tensor& x, Grad y) {
  const double* from = x.data<double>();
  double* to = y.tensor.data<double>();
  for_each_pair({"y", y.tensor}, {"x", x},
                [&](int64_t i, int64_t j) { put(to[i], from[j], y.mode); });
}

void upsample_nearest_fwd(Stream&, const Tensor& x, Tensor& y) {
  const Nhwc in("x", x), out("y", y);
  for (int64_t n = 0; n < out.N; ++n)
    for (int64_t h = 0; h < out.H; ++h)
      for (int64_t w = 0; w < out.W; ++w)
        for (int64_t c = 0; c < out.C; ++c)
          y.data<double>()[out.at(n, h, w, c)] = x.data<double>()[in.at(n, h / 2, w / 2, c)];
}

void upsample_nearest_bwd(Stream&, const Tensor& dy, Grad dx) {
  const Nhwc in("dx", dx.tensor), out("dy", dy);
  const double* d = dy.data<double>();
  for (int64_t n = 0; n < in.N; ++n)
    for (int64_t h = 0; h < in.H; ++h)
      for (int64_t w = 0; w < in.W; ++w)
        for (int64_t c = 0; c < in.C; ++c)
          put(dx.tensor.data<double>()[in.at(n, h, w, c)],
              d[out.at(n, 2 * h, 2 * w, c)] + d[out.at(n, 2 * h, 2 * w + 1, c)] +
                  d[out.at(n, 2 * h + 1, 2 * w, c)] + d[out.at(n, 2 * h + 1, 2 * w + 1, c)],
              dx.mode);
}

}  // namespace oracle

namespace cpu {

// Channels of the 2x2 pixels a b / c d, interleaved: y = a0 b0 c0 d0 a1 b1 ...
template <GradMode mode, class T>
void interleave(const T* ab, const T* cd, T* y, int64_t C) {
#pragma omp simd
  for (int64_t i = 0; i < C; ++i) {
    put(y[4 * i], to_float(ab[i]), mode);
    put(y[4 * i + 1], to_float(ab[C + i]), mode);
    put(y[4 * i + 2], to_float(cd[i]), mode);
    put(y[4 * i + 3], to_float(cd[C + i]), mode);
  }
}

template <GradMode mode, class T>
void deinterleave(const T* x, T* ab, T* cd, int64_t C) {
#pragma omp simd
  for (int64_t i = 0; i < C; ++i) {
    put(ab[i], to_float(x[4 * i]), mode);
    put(ab[C + i], to_float(x[4 * i + 1]), mode);
    put(cd[i], to_float(x[4 * i + 2]), mode);
    put(cd[C + i], to_float(x[4 * i + 3]), mode);
  }
}

void space_to_channel(Stream&, const Tensor& x, Grad y) {
  const Nhwc in("x", x);
  const int64_t row = in.W * in.C;
  with_storage(x.dtype(), [&]<class T>() {
    const T* from = x.data<T>();
    T* to = y.tensor.data<T>();
    auto* move = y.mode == GradMode::Overwrite ? interleave<GradMode::Overwrite, T>
                                               : interleave<GradMode::Accumulate, T>;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < in.N * in.H / 2; ++r)
      for (int64_t i = 0; i < row; i += 2 * in.C)
        move(from + 2 * r * row + i, from + (2 * r + 1) * row + i, to + 2 * r * row + 2 * i, in.C);
  });
}

void channel_to_space(Stream&, const Tensor& x, Grad y) {
  const Nhwc out("y", y.tensor);
  const int64_t row = out.W * out.C;
  with_storage(x.dtype(), [&]<class T>() {
    const T* from = x.data<T>();
    T* to = y.tensor.data<T>();
    auto* move = y.mode == GradMode::Overwrite ? deinterleave<GradMode::Overwrite, T>
                                               : deinterleave<GradMode::Accumulate, T>;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < out.N * out.H / 2; ++r)
      for (int64_t i = 0; i < row; i += 2 * out.C)
        move(from + 2 * r * row + 2 * i, to + 2 * r * row + i, to + (2 * r + 1) * row + i, out.C);
  });
}

void upsample_nearest_fwd(Stream&, const Tensor& x, Tensor& y) {
  const Nhwc in("x", x);
  const int64_t C = in.C, row = 2 * in.W * C;
  with_storage(x.dtype(), [&]<class T>() {
    const T* from = x.data<T>();
    T* to = y.data<T>();
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < in.N * in.H; ++r) {
      T* upper = to + 2 * r * row;
      for (int64_t w = 0; w < 2 * in.W; ++w)
        std::memcpy(upper + w * C, from + (r * in.W + w / 2) * C, size_t(C) * sizeof(T));
      std::memcpy(upper + row, upper, size_t(row) * sizeof(T));
    }
  });
}

void upsample_nearest_bwd(Stream&, const Tensor& dy, Grad dx) {
  const Nhwc in("dx", dx.tensor);
  const int64_t C = in.C, row = 2 * in.W * C;
  with_storage(dy.dtype(), [&]<class T>() {
    const T* from = dy.data<T>();
    T* to = dx.tensor.data<T>();
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < in.N * in.H; ++r)
      for (int64_t w = 0; w < in.W; ++w) {
        const T *ab = from + 2 * r * row + 2 * w * C, *cd = ab + row;
        put_row(to + (r * in.W + w) * C, C, dx.mode, [=](int64_t c) {
          return (to_float(ab[c]) + to_float(ab[C + c])) + (to_float(cd[c]) + to_float(cd[C + c]));
        });
      }
  });
}

}  // namespace cpu

ON_CUDA(upsample_nearest_bwd)
ON_CUDA(upsample_nearest_fwd)
ON_CUDA(channel_to_space)
ON_CUDA(space_to_channel)

void space_to_channel(Stream& stream, const Tensor& x, Grad y) {
  if (!y) return;
  const Nhwc in("space_to_channel: x", x);
  ENSURE(in.H % 2 == 0 && in.W % 2 == 0, "space_to_channel: x is ", x.shape(),
         ", expected even H and W");
  expect("space_to_channel: y", y.tensor, {in.N, in.H / 2, in.W / 2, 4 * in.C}, x.dtype());
  DISPATCH(stream, x.dtype(), space_to_channel(stream, x, y));
}

void channel_to_space(Stream& stream, const Tensor& x, Grad y) {
  if (!y) return;
  const Nhwc in("channel_to_space: x", x);
  ENSURE(in.C % 4 == 0, "channel_to_space: x is ", x.shape(), ", expected C a multiple of 4");
  expect("channel_to_space: y", y.tensor, {in.N, 2 * in.H, 2 * in.W, in.C / 4}, x.dtype());
  DISPATCH(stream, x.dtype(), channel_to_space(stream, x, y));
}

void upsample_nearest_fwd(Stream& stream, const Tensor& x, Tensor& y) {
  const Nhwc in("upsample_nearest_fwd: x", x);
  expect("upsample_nearest_fwd: y", y, {in.N, 2 * in.H, 2 * in.W, in.C}, x.dtype());
  DISPATCH(stream, x.dtype(), upsample_nearest_fwd(stream, x, y));
}

void upsample_nearest_bwd(Stream& stream, const Tensor& dy, Grad dx) {
  if (!dx) return;
  const Nhwc in("upsample_nearest_bwd: dx", dx.tensor);
  expect("upsample_nearest_bwd: dy", dy, {in.N, 2 * in.H, 2 * in.W, in.C}, dx.tensor.dtype());
  DISPATCH(stream, dy.dtype(), upsample_nearest_bwd(stream, dy, dx));
}

}  // namespace tessera
