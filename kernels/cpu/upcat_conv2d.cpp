// Convolution over concat(upsample(low), skip) that makes neither. Products in f32 of 3x3
// filters go by winograd.h, unless channels or pixels are few; the rest as follows.
//
// A 3x3 filter over a nearest-upsampled image reads each low-resolution pixel more than once: for
// the outputs of one parity (p, q) it is a 2x2 filter over `low` whose taps are sums of the 3x3
// taps, tap r going to row u = (r + 1 - p) / 2, padded on the side away from the parity. Exact,
// borders included, with 4/9 of the products (Shi et al. 2016 call the same idea sub-pixel
// convolution). A 1x1 filter runs at low resolution once. The skip channels are an ordinary
// convolution with the other channels of the same filter.
//   y[2i+p, 2j+q] = conv(skip, w[.., A:]) + conv2x2(low, w_pq)[i, j]
#include <array>

#include "kernels/composed.h"
#include "kernels/cpu/convolve.h"
#include "kernels/cpu/loops.h"
#include "kernels/cpu/winograd.h"

namespace tessera {
namespace {

// The sizes of the operation.
struct Upcat {
  int64_t N, h, w, A, B, K, R;  // h, w: of low

  ConvProblem skip_part() const {
    return {N, 2 * h, 2 * w, B, K, R, R, 2 * h, 2 * w, {1, int(R / 2), int(R / 2)}};
  }
  // One parity of the upsampled part: 2x2 (of a 3x3 filter), or the whole part: 1x1.
  ConvProblem low_part(int p, int q) const {
    return R == 1 ? ConvProblem{N, h, w, A, K, 1, 1, h, w, {1, 0, 0}}
                  : ConvProblem{N, h, w, A, K, 2, 2, h, w, {1, 1 - p, 1 - q}};
  }
  Shape phases() const { return {K, 4, 4, A}; }
};

Upcat check(const Shape& low, const Shape& skip, const Shape& w) {
  ENSURE(low.rank() == 4 && skip.rank() == 4 && w.rank() == 4 && low[0] == skip[0] &&
             2 * low[1] == skip[1] && 2 * low[2] == skip[2],
         "upcat_conv2d: low is ", low, ", skip is ", skip, ", w is ", w);
  ENSURE(w[3] == low[3] + skip[3], "upcat_conv2d: w takes ", w[3], " channels, low and skip have ",
         low[3], " + ", skip[3]);
  ENSURE(w[1] == w[2] && (w[1] == 1 || w[1] == 3), "upcat_conv2d: w is ", w,
         ", expected 1x1 or 3x3");
  ENSURE(low[3] > 0 && skip[3] > 0 && w[0] > 0, "upcat_conv2d: low is ", low, ", skip is ", skip,
         ", w is ", w, ": all need channels");
  return {low[0], low[1], low[2], low[3], skip[3], w[0], w[1]};
}

}  // namespace

namespace oracle {
// By definition: through the concatenation.
void upcat_conv2d_fwd(Stream& stream, const Tensor& low, const Tensor& skip, const Tensor& w,
                      const FilterForms&, const Tensor& b, Tensor& y, MomentsOut*) {
  const int pad = int(w.dim(1) / 2);
  Tensor x = Tensor::empty(stream, {skip.dim(0), skip.dim(1), skip.dim(2), w.dim(3)}, DType::f64);
  concat_upsample_fwd(stream, low, skip, x);
  tessera::conv2d_fwd(stream, {1, pad, pad}, x, w, b, y);
}

void upcat_conv2d_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w, const FilterForms&,
                           Grad dlow, Grad dskip) {
  const int pad = int(w.dim(1) / 2);
  Tensor dx = Tensor::empty(stream, {dy.dim(0), dy.dim(1), dy.dim(2), w.dim(3)}, DType::f64);
  tessera::conv2d_bwd_data(stream, {1, pad, pad}, dy, w, {dx});
  concat_upsample_bwd(stream, dx, dlow, dskip);
}

void upcat_conv2d_bwd_weight(Stream& stream, const Tensor& low, const Tensor& skip,
                             const Tensor& dy, Grad dw, Grad db) {
  const int pad = int(dw.tensor.dim(1) / 2);
  Tensor x = Tensor::empty(stream, {dy.dim(0), dy.dim(1), dy.dim(2), dw.tensor.dim(3)}, DType::f64);
  concat_upsample_fwd(stream, low, skip, x);
  tessera::conv2d_bwd_weight(stream, {1, pad, pad}, x, dy, dw, db);
}

}  // namespace oracle

namespace cpu {
namespace {

// The filters of a 3x3 filter's parities as products read them: `given`, or made here.
Tensor phases_of(Stream& stream, const Upcat& u, const Tensor& w, const Tensor& given) {
  if (u.R == 1) return {};
  if (given && w.dtype() == DType::bf16) return operand(stream, given);
  Tensor phases = Tensor::empty(stream, u.phases(), w.dtype());
  tessera::upcat_phases(stream, std::array{PhasedFilter{w, phases}});
  return operand(stream, phases);
}

// The filter [K,2,2,A] of one parity, or its gradient.
FilterView parity_filter(const Upcat& u, const Tensor& phases, int p, int q) {
  return {phases, (2 * p + q) * 4 * u.A, 16 * u.A, u.A};
}

// The gradient of the A channels of a 3x3 filter from that of its phases: every tap is part of one
// sum of each parity.
void add_phases_gradient(const Upcat& u, const Tensor& phases, const Grad& dw) {
  const float* part = phases.data<float>();
  float* to = Tensor(dw.tensor).data<float>();
#pragma omp parallel for schedule(static)
  for (int64_t k = 0; k < u.K; ++k)
    for (int r = 0; r < 3; ++r)
      for (int s = 0; s < 3; ++s) {
        const auto from = [&](int p, int q) {
          return part + (k * 16 + (2 * p + q) * 4 + (r + 1 - p) / 2 * 2 + (s + 1 - q) / 2) * u.A;
        };
        const float *a = from(0, 0), *b = from(0, 1), *c = from(1, 0), *d = from(1, 1);
        put_row(to + ((k * 3 + r) * 3 + s) * (u.A + u.B), u.A, dw.mode,
                [=](int64_t i) { return (a[i] + b[i]) + (c[i] + d[i]); });
      }
}

// y[.., 2i+p, 2j+q, ..] += x[.., i, j, ..]
void add_to_parity(const Upcat& u, const Tensor& x, int p, int q, Tensor& y) {
  const float* from = x.data<float>();
  float* to = y.data<float>();
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < u.N * u.h; ++row)
    for (int64_t j = 0; j < u.w; ++j) {
      const float* pixel = from + (row * u.w + j) * u.K;
      put_row(to + ((2 * row + p) * 2 * u.w + 2 * j + q) * u.K, u.K, GradMode::Accumulate,
              [&](int64_t k) { return pixel[k]; });
    }
}

// x[.., i, j, ..] = y[.., 2i+p, 2j+q, ..]
void take_parity(const Upcat& u, const Tensor& y, int p, int q, Tensor& x) {
  with_storage(y.dtype(), [&]<class T>() {
    const T* from = y.data<T>();
    T* to = x.data<T>();
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < u.N * u.h; ++row)
      for (int64_t j = 0; j < u.w; ++j)
        std::copy_n(from + ((2 * row + p) * 2 * u.w + 2 * j + q) * u.K, u.K,
                    to + (row * u.w + j) * u.K);
  });
}

// Calls step(sizes, n) for the images of `whole`, n the first of them: in bf16 a few at a time, as
// the sum of the parts is in f32.
template <class Step>
void for_images(Stream& stream, const Upcat& whole, DType dtype, Step step) {
  Upcat u = whole;
  const int64_t count = dtype == DType::bf16 ? images_at_once(stream, whole.skip_part()) : whole.N;
  for (int64_t n = 0; n < whole.N; n += count) {
    u.N = std::min(count, whole.N - n);
    step(u, n);
  }
}

// What follows is of operands (convolve.h): y = ..., in f32.
void forward(Stream& stream, const Upcat& u, const Tensor& low, const Tensor& skip, const Tensor& w,
             const Tensor& phases, const Tensor& b, Tensor& y) {
  convolve(stream, u.skip_part(), skip, FilterView::of(w, u.A), b, y);
  Tensor part = Tensor::empty(stream, {u.N, u.h, u.w, u.K});
  if (u.R == 1) convolve(stream, u.low_part(0, 0), low, FilterView::of(w), {}, part);
  for (int p : {0, 1})
    for (int q : {0, 1}) {
      if (u.R == 3)
        convolve(stream, u.low_part(p, q), low, parity_filter(u, phases, p, q), {}, part);
      add_to_parity(u, part, p, q, y);
    }
}

void low_gradient(Stream& stream, const Upcat& u, const Tensor& dy, const Tensor& w,
                  const Tensor& phases, const Grad& dlow) {
  Tensor part = Tensor::empty(stream, {u.N, u.h, u.w, u.K}, dy.dtype());
  if (u.R == 1) {
    upsample_nearest_bwd(stream, dy, {part});
    return convolve_bwd_data(stream, u.low_part(0, 0), part, FilterView::of(w), dlow);
  }
  const bool direct = dlow.tensor.dtype() == DType::f32;
  Grad sum = direct ? dlow : Grad{Tensor::empty(stream, dlow.tensor.shape())};
  for (int p : {0, 1})
    for (int q : {0, 1}) {
      take_parity(u, dy, p, q, part);
      convolve_bwd_data(stream, u.low_part(p, q), part, parity_filter(u, phases, p, q), sum);
      sum.mode = GradMode::Accumulate;
    }
  if (!direct) put_floats(sum.tensor, dlow.tensor, dlow.mode);
}

// Whether y, or the gradients of low and skip, are computed by Winograd's tiles. They read the
// upsampled pixels: where bf16 is multiplied at twice the rate of f32, the sub-pixel form is
// faster.
bool goes_whole(Stream& stream, const Upcat& u, const Tensor& x) {
  const bool in_f32 = x.dtype() == DType::f32 || is_widened(stream, x);
  return in_f32 && goes_by_winograd(stream, u.skip_part(), x);
}

void weight_gradient(Stream& stream, const Upcat& u, const Tensor& low, const Tensor& skip,
                     const Tensor& dy, const Grad& dw, const Grad& db) {
  convolve_bwd_weight(stream, u.skip_part(), skip, dy, FilterView::of(dw.tensor, u.A), dw.mode, db);
  Tensor part = Tensor::empty(stream, {u.N, u.h, u.w, u.K}, dy.dtype());
  if (u.R == 1) {
    upsample_nearest_bwd(stream, dy, {part});
    return convolve_bwd_weight(stream, u.low_part(0, 0), low, part, FilterView::of(dw.tensor),
                               dw.mode, {});
  }
  const Tensor phases = Tensor::empty(stream, u.phases());
  for (int p : {0, 1})
    for (int q : {0, 1}) {
      take_parity(u, dy, p, q, part);
      convolve_bwd_weight(stream, u.low_part(p, q), low, part, parity_filter(u, phases, p, q),
                          GradMode::Overwrite, {});
    }
  add_phases_gradient(u, phases, dw);
}

}  // namespace

void upcat_conv2d_fwd(Stream& stream, const Tensor& low, const Tensor& skip, const Tensor& w,
                      const FilterForms& forms, const Tensor& b, Tensor& y, MomentsOut*) {
  const Upcat whole = check(low.shape(), skip.shape(), w.shape());
  if (goes_whole(stream, whole, skip))
    return winograd_fwd(stream, whole.skip_part(), {{skip, whole.A}, {low, 0, true}}, w, b, y);
  const Tensor filter = operand(stream, w), four = phases_of(stream, whole, w, forms.phases);
  for_images(stream, whole, y.dtype(), [&](const Upcat& u, int64_t n) {
    const auto part = [&](const Tensor& x) { return operand(stream, images(x, n, u.N)); };
    Tensor target = images(y, n, u.N);
    Tensor sum = y.dtype() == DType::f32 ? target : Tensor::empty(stream, target.shape());
    forward(stream, u, part(low), part(skip), filter, four, b, sum);
    if (y.dtype() != DType::f32) put_floats(sum, target, GradMode::Overwrite);
  });
}

void upcat_conv2d_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w,
                           const FilterForms& forms, Grad dlow, Grad dskip) {
  const Upcat whole = check(dlow.tensor.shape(), dskip.tensor.shape(), w.shape());
  if (goes_whole(stream, whole, dy))
    return winograd_bwd_data(
        stream, whole.skip_part(), dy, w,
        {{dskip.tensor, whole.A, false, dskip.mode}, {dlow.tensor, 0, true, dlow.mode}});
  const Tensor filter = operand(stream, w), four = phases_of(stream, whole, w, forms.phases);
  for_images(stream, whole, dy.dtype(), [&](const Upcat& u, int64_t n) {
    const Tensor part = operand(stream, images(dy, n, u.N));
    convolve_bwd_data(stream, u.skip_part(), part, FilterView::of(filter, u.A),
                      {images(dskip.tensor, n, u.N), dskip.mode});
    low_gradient(stream, u, part, filter, four, {images(dlow.tensor, n, u.N), dlow.mode});
  });
}

void upcat_conv2d_bwd_weight(Stream& stream, const Tensor& low, const Tensor& skip,
                             const Tensor& dy, Grad dw, Grad db) {
  const Upcat whole = check(low.shape(), skip.shape(), dw.tensor.shape());
  if (goes_by_winograd(stream, whole.skip_part(), skip))
    return winograd_bwd_weight(stream, whole.skip_part(), {{skip, whole.A}, {low, 0, true}}, dy, dw,
                               db);
  for_images(stream, whole, dy.dtype(), [&](const Upcat& u, int64_t n) {
    const auto part = [&](const Tensor& x) { return operand(stream, images(x, n, u.N)); };
    weight_gradient(stream, u, part(low), part(skip), part(dy), dw, db);
    dw.mode = db.mode = GradMode::Accumulate;
  });
}

}  // namespace cpu

ON_CUDA(upcat_conv2d_bwd_weight)
ON_CUDA(upcat_conv2d_bwd_data)
ON_CUDA(upcat_conv2d_fwd)

namespace {

void expect_phases(const char* what, const Upcat& u, const Tensor& phases) {
  ENSURE(!phases || u.R == 3, what, " of a filter ", u.R, "x", u.R);
  expect_if(what, phases, u.phases(), DType::bf16);
}
void expect_turned(const Upcat& u, const FilterForms& forms) {
  ENSURE(!forms.turned_phases || u.R == 3, "upcat_conv2d_bwd_data: turned_phases of a filter ", u.R,
         "x", u.R);
  expect_if("upcat_conv2d_bwd_data: turned", forms.turned, {u.skip_part().C, u.R, u.R, u.K},
            DType::bf16);
  expect_if("upcat_conv2d_bwd_data: turned_phases", forms.turned_phases, {u.A, 4, 4, u.K},
            DType::bf16);
}

}  // namespace

void upcat_conv2d_fwd(Stream& stream, const Tensor& low, const Tensor& skip, const Tensor& w,
                      const FilterForms& forms, const Tensor& b, Tensor& y, MomentsOut* moments) {
  const Upcat u = check(low.shape(), skip.shape(), w.shape());
  expect("upcat_conv2d_fwd: skip", skip, skip.shape(), low.dtype());
  expect("upcat_conv2d_fwd: w", w, w.shape(), low.dtype());
  expect_phases("upcat_conv2d_fwd: phases", u, forms.phases);
  expect_if("upcat_conv2d_fwd: b", b, {u.K}, master_of(low.dtype()));
  expect("upcat_conv2d_fwd: y", y, u.skip_part().y(), low.dtype());
  if (moments) expect_moments(*moments, y);
  if (y.numel() == 0) return;
  DISPATCH(stream, low.dtype(), upcat_conv2d_fwd(stream, low, skip, w, forms, b, y, moments));
}

void upcat_conv2d_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w,
                           const FilterForms& forms, Grad dlow, Grad dskip) {
  if (!dlow && !dskip) return;
  // Both are computed, also where one is not wanted.
  const Shape& given = (dlow ? dlow : dskip).tensor.shape();
  ENSURE(given.rank() == 4 && w.shape().rank() == 4 && given[3] < w.dim(3),
         "upcat_conv2d_bwd_data: a gradient ", given, ", w is ", w.shape());
  const auto unwanted = [&](int64_t H, int64_t W) {
    return Grad{Tensor::empty(stream, {given[0], H, W, w.dim(3) - given[3]}, w.dtype())};
  };
  if (!dlow) dlow = unwanted(given[1] / 2, given[2] / 2);
  if (!dskip) dskip = unwanted(2 * given[1], 2 * given[2]);
  const Upcat u = check(dlow.tensor.shape(), dskip.tensor.shape(), w.shape());
  expect("upcat_conv2d_bwd_data: dy", dy, u.skip_part().y(), w.dtype());
  expect_phases("upcat_conv2d_bwd_data: phases", u, forms.phases);
  expect_turned(u, forms);
  expect("upcat_conv2d_bwd_data: dlow", dlow.tensor, dlow.tensor.shape(), w.dtype());
  expect("upcat_conv2d_bwd_data: dskip", dskip.tensor, dskip.tensor.shape(), w.dtype());
  if (dy.numel() == 0) return;
  DISPATCH(stream, w.dtype(), upcat_conv2d_bwd_data(stream, dy, w, forms, dlow, dskip));
}

void upcat_conv2d_bwd_weight(Stream& stream, const Tensor& low, const Tensor& skip,
                             const Tensor& dy, Grad dw, Grad db) {
  if (!dw && !db) return;
  if (!dw) {
    expect("upcat_conv2d_bwd_weight: dy", dy, {skip.dim(0), skip.dim(1), skip.dim(2), dy.dim(3)},
           low.dtype());
    expect("upcat_conv2d_bwd_weight: db", db.tensor, {dy.dim(3)}, master_of(low.dtype()));
    return composed::sum_pixels(stream, dy, db);
  }
  const Upcat u = check(low.shape(), skip.shape(), dw.tensor.shape());
  expect("upcat_conv2d_bwd_weight: skip", skip, skip.shape(), low.dtype());
  expect("upcat_conv2d_bwd_weight: dy", dy, u.skip_part().y(), low.dtype());
  expect("upcat_conv2d_bwd_weight: dw", dw.tensor, dw.tensor.shape(), master_of(low.dtype()));
  expect_if("upcat_conv2d_bwd_weight: db", db.tensor, {u.K}, master_of(low.dtype()));
  if (dy.numel() == 0) {
    start_sum(stream, dw);
    start_sum(stream, db);
    return;
  }
  DISPATCH(stream, low.dtype(), upcat_conv2d_bwd_weight(stream, low, skip, dy, dw, db));
}

}  // namespace tessera
