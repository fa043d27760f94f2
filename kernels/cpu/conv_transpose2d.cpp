// conv_transpose2d: checks, dispatch and the f64 oracle. Everything else is done by conv2d's
// functions, whose input and output change places, and a bias added to every pixel of the batch.
#include "kernels/composed.h"
#include "kernels/cpu/loops.h"

namespace tessera {
namespace oracle {
namespace {

// Calls f(x index, w index, y index) for every product.
template <class F>
void for_each_product(const Nhwc& x, const Nhwc& y, F f) {
  for (int64_t n = 0; n < y.N; ++n)
    for (int64_t h = 0; h < y.H; ++h)
      for (int64_t w = 0; w < y.W; ++w)
        for (int64_t k = 0; k < y.C; ++k)
          for (int64_t c = 0; c < x.C; ++c)
            f(x.at(n, h / 2, w / 2, c), ((c * 2 + h % 2) * 2 + w % 2) * y.C + k, y.at(n, h, w, k));
}

}  // namespace

void conv_transpose2d_fwd(Stream&, const Tensor& x, const Tensor& w, const Tensor& b, Tensor& y) {
  const double *in = x.data<double>(), *filter = w.data<double>();
  double* out = y.data<double>();
  for (int64_t i = 0; i < y.numel(); ++i) out[i] = b ? b.data<double>()[i % y.dim(3)] : 0.0;
  for_each_product({"x", x}, {"y", y},
                   [&](int64_t i, int64_t j, int64_t k) { out[k] += in[i] * filter[j]; });
}

void conv_transpose2d_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w, Grad dx) {
  start_sum(stream, dx);
  const double *out = dy.data<double>(), *filter = w.data<double>();
  double* in = dx.tensor.data<double>();
  for_each_product({"dx", dx.tensor}, {"dy", dy},
                   [&](int64_t i, int64_t j, int64_t k) { in[i] += out[k] * filter[j]; });
}

void conv_transpose2d_bwd_weight(Stream& stream, const Tensor& x, const Tensor& dy, Grad dw,
                                 Grad db) {
  const double *in = x.data<double>(), *out = dy.data<double>();
  if (dw) {
    start_sum(stream, dw);
    double* filter = dw.tensor.data<double>();
    for_each_product({"x", x}, {"dy", dy},
                     [&](int64_t i, int64_t j, int64_t k) { filter[j] += in[i] * out[k]; });
  }
  if (!db) return;
  start_sum(stream, db);
  for (int64_t i = 0; i < dy.numel(); ++i) db.tensor.data<double>()[i % dy.dim(3)] += out[i];
}

}  // namespace oracle

namespace composed {

constexpr ConvSpec kHalving{2, 0, 0};

// [N,H,W,C] as one image, to whose pixels a bias is added.
Shape as_image(const Shape& shape) { return {1, shape[0] * shape[1], shape[2], shape[3]}; }

void conv_transpose2d_fwd(Stream& stream, const Tensor& x, const Tensor& w, const Tensor& b,
                          Tensor& y) {
  conv2d_bwd_data(stream, kHalving, x, w, {y});
  if (!b) return;
  Tensor image = y.reshape(as_image(y.shape()));
  add_broadcast_fwd(stream, image, b.reshape({1, b.dim(0)}), image);
}

void conv_transpose2d_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w, Grad dx) {
  const bool add = dx.mode == GradMode::Accumulate;
  Tensor target = add ? Tensor::empty(stream, dx.tensor.shape(), dx.tensor.dtype()) : dx.tensor;
  conv2d_fwd(stream, kHalving, dy, w, {}, target);
  if (add) add_bwd(stream, target, dx);
}

void conv_transpose2d_bwd_weight(Stream& stream, const Tensor& x, const Tensor& dy, Grad dw,
                                 Grad db) {
  conv2d_bwd_weight(stream, kHalving, dy, x, dw, {});
  sum_pixels(stream, dy, db);
}

}  // namespace composed

#define COMPOSED(backend)                      \
  namespace backend {                          \
  using composed::conv_transpose2d_bwd_data;   \
  using composed::conv_transpose2d_bwd_weight; \
  using composed::conv_transpose2d_fwd;        \
  }
COMPOSED(cpu)
COMPOSED(simt)
COMPOSED(gpu)
#undef COMPOSED

namespace {

// Throws unless the shapes fit each other.
void check_shapes(const char* what, const Tensor& x, const Tensor& w, const Tensor& y) {
  const Nhwc in(what, x), filter(what, w);
  ENSURE(filter.N == in.C && filter.H == 2 && filter.W == 2 && in.C > 0 && filter.C > 0, what,
         ": x is ", x.shape(), ", w is ", w.shape(), ", expected [C,2,2,K]");
  expect(what, y, {in.N, 2 * in.H, 2 * in.W, filter.C}, x.dtype());
}

}  // namespace

void conv_transpose2d_fwd(Stream& stream, const Tensor& x, const Tensor& w, const Tensor& b,
                          Tensor& y) {
  check_shapes("conv_transpose2d_fwd", x, w, y);
  expect("conv_transpose2d_fwd: w", w, w.shape(), x.dtype());
  expect_if("conv_transpose2d_fwd: b", b, {w.dim(3)}, master_of(x.dtype()));
  if (y.numel() == 0) return;
  DISPATCH(stream, x.dtype(), conv_transpose2d_fwd(stream, x, w, b, y));
}

void conv_transpose2d_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w, Grad dx) {
  if (!dx) return;
  check_shapes("conv_transpose2d_bwd_data", dx.tensor, w, dy);
  expect("conv_transpose2d_bwd_data: w", w, w.shape(), dy.dtype());
  if (dy.numel() == 0) return;
  DISPATCH(stream, dy.dtype(), conv_transpose2d_bwd_data(stream, dy, w, dx));
}

void conv_transpose2d_bwd_weight(Stream& stream, const Tensor& x, const Tensor& dy, Grad dw,
                                 Grad db) {
  if (!dw && !db) return;
  const Nhwc in("conv_transpose2d_bwd_weight: x", x), out("conv_transpose2d_bwd_weight: dy", dy);
  expect("conv_transpose2d_bwd_weight: dy", dy, {in.N, 2 * in.H, 2 * in.W, out.C}, x.dtype());
  expect_if("conv_transpose2d_bwd_weight: dw", dw.tensor, {in.C, 2, 2, out.C},
            master_of(x.dtype()));
  expect_if("conv_transpose2d_bwd_weight: db", db.tensor, {out.C}, master_of(x.dtype()));
  if (dy.numel() == 0) {
    start_sum(stream, dw);
    start_sum(stream, db);
    return;
  }
  DISPATCH(stream, x.dtype(), conv_transpose2d_bwd_weight(stream, x, dy, dw, db));
}

}  // namespace tessera
