// Pooling of 2x2 patches, bound by memory: whole runs of channels at a time, rows of pixels shared
// among the threads. Rows are counted through the batch, as in layout.cpp.
#include <cmath>

#include "kernels/cpu/loops.h"

namespace tessera {
namespace oracle {
namespace {

// The pixel of a patch that has the largest value.
int largest(const double* x, const int64_t (&at)[4]) {
  int best = 0;
  for (int p = 1; p < 4; ++p)
    if (x[at[p]] > x[at[best]] || std::isnan(x[at[p]])) best = p;
  return best;
}

// Calls f(index in the small image, indices of its patch of x in row order).
template <class F>
void for_each_patch(const Nhwc& x, F f) {
  int64_t i = 0;
  for (int64_t n = 0; n < x.N; ++n)
    for (int64_t h = 0; h < x.H / 2; ++h)
      for (int64_t w = 0; w < x.W / 2; ++w)
        for (int64_t c = 0; c < x.C; ++c) {
          int64_t at[4];
          for (int p = 0; p < 4; ++p) at[p] = x.at(n, 2 * h + p / 2, 2 * w + p % 2, c);
          f(i++, at);
        }
}

}  // namespace

void pool_fwd(Stream&, Pooling pooling, const Tensor& x, Tensor& y) {
  const double* in = x.data<double>();
  for_each_patch({"x", x}, [&](int64_t i, const int64_t(&at)[4]) {
    y.data<double>()[i] = pooling == Pooling::Max
                              ? in[at[largest(in, at)]]
                              : (in[at[0]] + in[at[1]] + in[at[2]] + in[at[3]]) / 4;
  });
}

void pool_bwd(Stream&, Pooling pooling, const Tensor& x, const Tensor& dy, Grad dx) {
  for_each_patch({"dx", dx.tensor}, [&](int64_t i, const int64_t(&at)[4]) {
    const double d = dy.data<double>()[i];
    const int best = pooling == Pooling::Max ? largest(x.data<double>(), at) : 0;
    for (int p = 0; p < 4; ++p)
      put(dx.tensor.data<double>()[at[p]],
          pooling == Pooling::Average ? d / 4
          : p == best                 ? d
                                      : 0.0,
          dx.mode);
  });
}

}  // namespace oracle

namespace cpu {

// The larger of a and a later b.
inline float later_max(float a, float b) { return b > a || b != b ? b : a; }

void pool_fwd(Stream&, Pooling pooling, const Tensor& x, Tensor& y) {
  const Nhwc out("y", y);
  const int64_t C = out.C, row = 2 * out.W * C;
  with_storage(x.dtype(), [&]<class T>() {
    const T* from = x.data<T>();
    T* to = y.data<T>();
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < out.N * out.H; ++r)
      for (int64_t w = 0; w < out.W; ++w) {
        const T *ab = from + 2 * r * row + 2 * w * C, *cd = ab + row;
        T* pixel = to + (r * out.W + w) * C;
        const auto reduce = [=](auto f) {
          put_row(pixel, C, GradMode::Overwrite, [=](int64_t i) {
            return f(to_float(ab[i]), to_float(ab[C + i]), to_float(cd[i]), to_float(cd[C + i]));
          });
        };
        if (pooling == Pooling::Max)
          reduce([](float a, float b, float c, float d) {
            return later_max(later_max(later_max(a, b), c), d);
          });
        else
          reduce([](float a, float b, float c, float d) { return 0.25f * ((a + b) + (c + d)); });
      }
  });
}

// One patch of dx: ab and cd are its two rows of two pixels, x_ab and x_cd those of x.
template <GradMode mode, class T>
void put_max_gradient(const T* x_ab, const T* x_cd, const T* dy, T* ab, T* cd, int64_t C) {
#pragma omp simd
  for (int64_t c = 0; c < C; ++c) {
    const float in[4] = {to_float(x_ab[c]), to_float(x_ab[C + c]), to_float(x_cd[c]),
                         to_float(x_cd[C + c])};
    const float d = to_float(dy[c]);
    float best = in[0];
    int at = 0;
    for (int p = 1; p < 4; ++p) {
      const bool larger = in[p] > best || in[p] != in[p];
      best = larger ? in[p] : best;
      at = larger ? p : at;
    }
    put(ab[c], at == 0 ? d : 0.0f, mode);
    put(ab[C + c], at == 1 ? d : 0.0f, mode);
    put(cd[c], at == 2 ? d : 0.0f, mode);
    put(cd[C + c], at == 3 ? d : 0.0f, mode);
  }
}

void pool_bwd(Stream&, Pooling pooling, const Tensor& x, const Tensor& dy, Grad dx) {
  const Nhwc out("dy", dy);
  const int64_t C = out.C, row = 2 * out.W * C;
  with_storage(dy.dtype(), [&]<class T>() {
    const T *in = pooling == Pooling::Max ? x.data<T>() : nullptr, *up = dy.data<T>();
    T* to = dx.tensor.data<T>();
    auto* put_max = dx.mode == GradMode::Overwrite ? put_max_gradient<GradMode::Overwrite, T>
                                                   : put_max_gradient<GradMode::Accumulate, T>;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < out.N * out.H; ++r)
      for (int64_t w = 0; w < out.W; ++w) {
        const int64_t ab = 2 * r * row + 2 * w * C, cd = ab + row;
        const T* d = up + (r * out.W + w) * C;
        if (pooling == Pooling::Max) {
          put_max(in + ab, in + cd, d, to + ab, to + cd, C);
          continue;
        }
        for (T* pixel : {to + ab, to + ab + C, to + cd, to + cd + C})
          put_row(pixel, C, dx.mode, [=](int64_t c) { return 0.25f * to_float(d[c]); });
      }
  });
}

}  // namespace cpu

ON_CUDA(pool_bwd)
ON_CUDA(pool_fwd)

void pool_fwd(Stream& stream, Pooling pooling, const Tensor& x, Tensor& y) {
  const Nhwc in("pool_fwd: x", x);
  ENSURE(in.H % 2 == 0 && in.W % 2 == 0, "pool_fwd: x is ", x.shape(), ", expected even H and W");
  expect("pool_fwd: y", y, {in.N, in.H / 2, in.W / 2, in.C}, x.dtype());
  DISPATCH(stream, x.dtype(), pool_fwd(stream, pooling, x, y));
}

void pool_bwd(Stream& stream, Pooling pooling, const Tensor& x, const Tensor& dy, Grad dx) {
  if (!dx) return;
  const Nhwc in("pool_bwd: dx", dx.tensor);
  ENSURE(in.H % 2 == 0 && in.W % 2 == 0, "pool_bwd: dx is ", dx.tensor.shape(),
         ", expected even H and W");
  if (pooling == Pooling::Max) expect("pool_bwd: x", x, dx.tensor.shape(), dy.dtype());
  expect("pool_bwd: dy", dy, {in.N, in.H / 2, in.W / 2, in.C}, dx.tensor.dtype());
  DISPATCH(stream, dy.dtype(), pool_bwd(stream, pooling, x, dy, dx));
}

}  // namespace tessera
