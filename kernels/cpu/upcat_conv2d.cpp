// Convolution over concat(upsample(low), skip) that makes neither.
//
// A 3x3 filter over a nearest-upsampled image reads each low-resolution pixel more than once: for
// the outputs of one parity (p, q) it is a 2x2 filter over `low` whose taps are sums of the 3x3
// taps, tap r going to row u = (r + 1 - p) / 2, padded on the side away from the parity. Exact,
// borders included, with 4/9 of the products (Shi et al. 2016 call the same idea sub-pixel
// convolution). A 1x1 filter runs at low resolution once. The skip channels are an ordinary
// convolution with the other channels of the same filter.
//   y[2i+p, 2j+q] = conv(skip, w[.., A:]) + conv2x2(low, w_pq)[i, j]
#include "kernels/cpu/loops.h"
#include "kernels/cpu/onednn.h"

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
  ENSURE(low[3] > 0 && skip[3] > 0, "upcat_conv2d: low is ", low, ", skip is ", skip,
         ": both need channels");
  return {low[0], low[1], low[2], low[3], skip[3], w[0], w[1]};
}

// The taps first .. last of a 3x3 filter's row (or column) that tap u of parity p sums.
struct Taps {
  int first, last;
};
Taps taps_of(int p, int u) { return {u == 0 ? 0 : 1 + p, u == 1 ? 2 : p}; }

template <class T>
void sum_phases(const Tensor& w, Tensor& phases) {
  const int64_t K = w.dim(0), C = w.dim(3), A = phases.dim(3);
  const T* from = w.data<T>();
  T* to = phases.data<T>();
  for (int64_t i = 0; i < K * 16; ++i) {
    const Taps rows = taps_of(int(i / 8 % 2), int(i / 2 % 2)),
               columns = taps_of(int(i / 4 % 2), int(i % 2));
    for (int64_t a = 0; a < A; ++a) {
      T sum = 0;
      for (int r = rows.first; r <= rows.last; ++r)
        for (int s = columns.first; s <= columns.last; ++s)
          sum += from[(i / 16 * 9 + 3 * r + s) * C + a];
      to[i * A + a] = sum;
    }
  }
}

}  // namespace

namespace oracle {

void upcat_phases(Stream&, const Tensor& w, Tensor& phases) { sum_phases<double>(w, phases); }

// By definition: through the concatenation.
void upcat_conv2d_fwd(Stream& stream, const Tensor& low, const Tensor& skip, const Tensor& w,
                      const Tensor&, const Tensor& b, Tensor& y, MomentsOut*) {
  const int pad = int(w.dim(1) / 2);
  Tensor x = Tensor::empty(stream, {skip.dim(0), skip.dim(1), skip.dim(2), w.dim(3)}, DType::f64);
  concat_upsample_fwd(stream, low, skip, x);
  tessera::conv2d_fwd(stream, {1, pad, pad}, x, w, b, y);
}

void upcat_conv2d_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w, const Tensor&,
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

void upcat_phases(Stream&, const Tensor& w, Tensor& phases) { sum_phases<float>(w, phases); }

namespace {

// The filter [K,2,2,A] of one parity.
Tensor parity_filter(Stream& stream, const Upcat& u, const Tensor& w, int p, int q) {
  Tensor filter = Tensor::empty(stream, {u.K, 2, 2, u.A});
  const float* from = w.data<float>();
  float* to = filter.data<float>();
#pragma omp parallel for schedule(static)
  for (int64_t k = 0; k < u.K; ++k)
    for (int i = 0; i < 4; ++i) {
      const Taps rows = taps_of(p, i / 2), columns = taps_of(q, i % 2);
      float* sum = to + (k * 4 + i) * u.A;
      GradMode mode = GradMode::Overwrite;
      for (int r = rows.first; r <= rows.last; ++r)
        for (int s = columns.first; s <= columns.last; ++s) {
          const float* tap = from + ((k * 3 + r) * 3 + s) * (u.A + u.B);
          put_row(sum, u.A, mode, [tap](int64_t a) { return tap[a]; });
          mode = GradMode::Accumulate;
        }
    }
  return filter;
}

// The gradient of the A channels of a 3x3 filter from those of the four parities' filters: every
// tap is part of one sum of each.
void add_parity_gradients(const Upcat& u, const Tensor (&sums)[2][2], Grad& dw) {
  const float* part[2][2] = {{sums[0][0].data<float>(), sums[0][1].data<float>()},
                             {sums[1][0].data<float>(), sums[1][1].data<float>()}};
  float* to = dw.tensor.data<float>();
#pragma omp parallel for schedule(static)
  for (int64_t k = 0; k < u.K; ++k)
    for (int r = 0; r < 3; ++r)
      for (int s = 0; s < 3; ++s) {
        const auto from = [&](int p, int q) {
          return part[p][q] + ((k * 2 + (r + 1 - p) / 2) * 2 + (s + 1 - q) / 2) * u.A;
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
  const float* from = y.data<float>();
  float* to = x.data<float>();
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < u.N * u.h; ++row)
    for (int64_t j = 0; j < u.w; ++j)
      std::copy_n(from + ((2 * row + p) * 2 * u.w + 2 * j + q) * u.K, u.K,
                  to + (row * u.w + j) * u.K);
}

}  // namespace

void upcat_conv2d_fwd(Stream& stream, const Tensor& low, const Tensor& skip, const Tensor& w,
                      const Tensor&, const Tensor& b, Tensor& y, MomentsOut*) {
  const Upcat u = check(low.shape(), skip.shape(), w.shape());
  OneDnn& dnn = stream.state<OneDnn>();
  const float* filter = w.data<float>();
  dnn.conv_fwd(u.skip_part(), skip.data<float>(), {filter + u.A, u.A + u.B}, data_or_null(b),
               y.data<float>());
  Tensor part = Tensor::empty(stream, {u.N, u.h, u.w, u.K});
  if (u.R == 1)
    dnn.conv_fwd(u.low_part(0, 0), low.data<float>(), {filter, u.A + u.B}, nullptr,
                 part.data<float>());
  for (int p : {0, 1})
    for (int q : {0, 1}) {
      if (u.R == 3)
        dnn.conv_fwd(u.low_part(p, q), low.data<float>(),
                     {parity_filter(stream, u, w, p, q).data<float>(), u.A}, nullptr,
                     part.data<float>());
      add_to_parity(u, part, p, q, y);
    }
}

void upcat_conv2d_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w, const Tensor&,
                           Grad dlow, Grad dskip) {
  const Upcat u = check(dlow.tensor.shape(), dskip.tensor.shape(), w.shape());
  OneDnn& dnn = stream.state<OneDnn>();
  const float* filter = w.data<float>();
  Tensor share = dskip.mode == GradMode::Overwrite ? dskip.tensor
                                                   : Tensor::empty(stream, dskip.tensor.shape());
  dnn.conv_bwd_data(u.skip_part(), dy.data<float>(), {filter + u.A, u.A + u.B},
                    share.data<float>());
  if (dskip.mode == GradMode::Accumulate) add_bwd(stream, share, dskip);

  Tensor part = Tensor::empty(stream, {u.N, u.h, u.w, u.K});
  Tensor sum = Tensor::empty(stream, dlow.tensor.shape());
  if (u.R == 1) {
    upsample_nearest_bwd(stream, dy, {part});
    dnn.conv_bwd_data(u.low_part(0, 0), part.data<float>(), {filter, u.A + u.B}, sum.data<float>());
    return add_bwd(stream, sum, dlow);
  }
  for (int p : {0, 1})
    for (int q : {0, 1}) {
      take_parity(u, dy, p, q, part);
      dnn.conv_bwd_data(u.low_part(p, q), part.data<float>(),
                        {parity_filter(stream, u, w, p, q).data<float>(), u.A}, sum.data<float>());
      add_bwd(stream, sum, dlow);
      dlow.mode = GradMode::Accumulate;
    }
}

void upcat_conv2d_bwd_weight(Stream& stream, const Tensor& low, const Tensor& skip,
                             const Tensor& dy, Grad dw, Grad db) {
  const Upcat u = check(low.shape(), skip.shape(), dw.tensor.shape());
  OneDnn& dnn = stream.state<OneDnn>();
  float* filter = dw.tensor.data<float>();
  Tensor bias = db ? Tensor::empty(stream, {u.K}) : Tensor();
  dnn.conv_bwd_weight(u.skip_part(), skip.data<float>(), dy.data<float>(),
                      {filter + u.A, u.A + u.B}, dw.mode, db ? bias.data<float>() : nullptr);
  add_bwd(stream, bias, db);

  Tensor part = Tensor::empty(stream, {u.N, u.h, u.w, u.K});
  if (u.R == 1) {
    upsample_nearest_bwd(stream, dy, {part});
    dnn.conv_bwd_weight(u.low_part(0, 0), low.data<float>(), part.data<float>(),
                        {filter, u.A + u.B}, dw.mode, nullptr);
    return;
  }
  Tensor sums[2][2];
  for (int p : {0, 1})
    for (int q : {0, 1}) {
      sums[p][q] = Tensor::empty(stream, {u.K, 2, 2, u.A});
      take_parity(u, dy, p, q, part);
      dnn.conv_bwd_weight(u.low_part(p, q), low.data<float>(), part.data<float>(),
                          {sums[p][q].data<float>(), u.A}, GradMode::Overwrite, nullptr);
    }
  add_parity_gradients(u, sums, dw);
}

}  // namespace cpu

ON_CUDA(upcat_phases)
ON_CUDA(upcat_conv2d_bwd_weight)
ON_CUDA(upcat_conv2d_bwd_data)
ON_CUDA(upcat_conv2d_fwd)

namespace {

void expect_phases(const char* what, const Upcat& u, const Tensor& phases) {
  ENSURE(!phases || u.R == 3, what, " of a filter ", u.R, "x", u.R);
  expect_if(what, phases, u.phases(), DType::bf16);
}

}  // namespace

void upcat_phases(Stream& stream, const Tensor& w, Tensor& phases) {
  ENSURE(w.shape().rank() == 4 && w.dim(1) == 3 && w.dim(2) == 3, "upcat_phases: w is ", w.shape(),
         ", expected 3x3");
  ENSURE(phases.shape().rank() == 4 && phases.dim(3) <= w.dim(3), "upcat_phases: phases is ",
         phases.shape(), ", w is ", w.shape());
  const DType dtype = stream.device().type() == DeviceType::cpu ? w.dtype() : DType::bf16;
  expect("upcat_phases: phases", phases, {w.dim(0), 4, 4, phases.dim(3)}, dtype);
  DISPATCH(stream, w.dtype(), upcat_phases(stream, w, phases));
}

void upcat_conv2d_fwd(Stream& stream, const Tensor& low, const Tensor& skip, const Tensor& w,
                      const Tensor& phases, const Tensor& b, Tensor& y, MomentsOut* moments) {
  const Upcat u = check(low.shape(), skip.shape(), w.shape());
  expect("upcat_conv2d_fwd: skip", skip, skip.shape(), low.dtype());
  expect("upcat_conv2d_fwd: w", w, w.shape(), low.dtype());
  expect_phases("upcat_conv2d_fwd: phases", u, phases);
  expect_if("upcat_conv2d_fwd: b", b, {u.K}, master_of(low.dtype()));
  expect("upcat_conv2d_fwd: y", y, u.skip_part().y(), low.dtype());
  if (moments) expect_moments(*moments, y);
  if (y.numel() == 0) return;
  DISPATCH(stream, low.dtype(), upcat_conv2d_fwd(stream, low, skip, w, phases, b, y, moments));
}

void upcat_conv2d_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w, const Tensor& phases,
                           Grad dlow, Grad dskip) {
  if (!dlow && !dskip) return;
  ENSURE(dlow && dskip, "upcat_conv2d_bwd_data: only one of dlow and dskip is wanted");
  const Upcat u = check(dlow.tensor.shape(), dskip.tensor.shape(), w.shape());
  expect("upcat_conv2d_bwd_data: dy", dy, u.skip_part().y(), w.dtype());
  expect_phases("upcat_conv2d_bwd_data: phases", u, phases);
  expect("upcat_conv2d_bwd_data: dlow", dlow.tensor, dlow.tensor.shape(), w.dtype());
  expect("upcat_conv2d_bwd_data: dskip", dskip.tensor, dskip.tensor.shape(), w.dtype());
  if (dy.numel() == 0) return;
  DISPATCH(stream, w.dtype(), upcat_conv2d_bwd_data(stream, dy, w, phases, dlow, dskip));
}

void upcat_conv2d_bwd_weight(Stream& stream, const Tensor& low, const Tensor& skip,
                             const Tensor& dy, Grad dw, Grad db) {
  if (!dw && !db) return;
  ENSURE(dw, "upcat_conv2d_bwd_weight: db is wanted without dw");
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
