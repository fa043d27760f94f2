#include "kernels/cpu/convolve.h"

#include <cstring>

#include "kernels/cpu/loops.h"

namespace tessera::cpu {
namespace {

constexpr int64_t kAtOnce = 1 << 20;   // bytes of one activation in f32, for each thread
constexpr int64_t kColumns = 4 << 20;  // bytes of columns at a time

bool is_pointwise(const ConvProblem& p) { return p.R == 1 && p.S == 1; }

// Gradients of 1x1 filters with a stride: oneDNN 2.6 writes past its scratchpad, and with AVX2
// computes wrong ones.
bool overruns(const ConvProblem& p) { return is_pointwise(p) && p.spec.stride > 1; }

// Whether a weight gradient is one matrix product, dy^T [K,N*P*Q] times columns [N*P*Q,R*S*C]. In
// AVX2 oneDNN's own way takes up to twice as long (docs/worklog.md).
bool goes_by_columns(const ConvProblem& p, const Tensor& x, const FilterView& dw) {
  static const bool pays = !has_avx512();
  return x.dtype() == DType::f32 && dw.pitch == p.C &&
         (overruns(p) || (pays && p.C >= 64 && p.spec.stride == 2));
}

// to [rows*Q,R*S*C]: what the outputs of rows first .. first+rows-1, counted through the batch,
// read of x.
void take_columns(const ConvProblem& p, const float* x, int64_t first, int64_t rows, float* to) {
  const int64_t size = p.R * p.S * p.C;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < rows * p.Q; ++i) {
    const int64_t n = (first + i / p.Q) / p.P, h = (first + i / p.Q) % p.P * p.spec.stride,
                  w = i % p.Q * p.spec.stride;
    for (int64_t tap = 0; tap < p.R * p.S; ++tap) {
      const int64_t y = h + tap / p.S - p.spec.pad_h, z = w + tap % p.S - p.spec.pad_w;
      float* column = to + i * size + tap * p.C;
      if (y >= 0 && y < p.H && z >= 0 && z < p.W)
        std::memcpy(column, x + ((n * p.H + y) * p.W + z) * p.C, size_t(p.C) * sizeof(float));
      else
        std::fill_n(column, p.C, 0.0f);
    }
  }
}

void weight_gradient_by_columns(Stream& stream, const ConvProblem& p, const Tensor& x,
                                const Tensor& dy, Grad dw, Grad db) {
  const int64_t size = p.R * p.S * p.C, all = p.N * p.P;
  const int64_t parts = std::min(all, all * p.Q * size * int64_t(sizeof(float)) / kColumns + 1);
  const int64_t count = ceil_div(all, parts);
  Tensor columns = Tensor::empty(stream, {count * p.Q, size});
  Tensor ones = Tensor::empty(stream, {db ? count * p.Q : 0});
  std::fill_n(ones.data<float>(), ones.numel(), 1.0f);
  for (int64_t first = 0; first < all; first += count) {
    const int64_t rows = std::min(count, all - first), pixels = rows * p.Q;
    take_columns(p, x.data<float>(), first, rows, columns.data<float>());
    const MatrixView left{dy.slice(first * p.Q * p.K, {pixels, p.K}), 1, p.K};
    multiply(stream, p.K, size, pixels, left, {columns, size, 1}, {}, dw.tensor, dw.mode);
    if (db) multiply(stream, p.K, 1, pixels, left, {ones, 1, 1}, {}, db.tensor, db.mode);
    dw.mode = db.mode = GradMode::Accumulate;
  }
}

// ---- What else oneDNN 2.6 does wrong with AVX-512.

// In bf16: gradients of data by odd numbers of 1x1 filters, at some sizes of images.
bool is_odd_product(const ConvProblem& p, const Tensor& dy) {
  return dy.dtype() == DType::bf16 && is_pointwise(p) && p.K % 2 == 1;
}

// In bf16: the gradient of a row or a column of the filter that meets nothing but padding.
bool has_idle_taps(const ConvProblem& p) {
  const auto idle = [&](int64_t taps, int64_t pad, int64_t outputs, int64_t size) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      bool meets = false;
      for (int64_t i = 0; i < outputs && !meets; ++i) {
        const int64_t at = i * p.spec.stride + tap - pad;
        meets = at >= 0 && at < size;
      }
      if (!meets) return true;
    }
    return false;
  };
  return idle(p.R, p.spec.pad_h, p.P, p.H) || idle(p.S, p.spec.pad_w, p.Q, p.W);
}

}  // namespace

bool is_widened(Stream& stream, const Tensor& tensor) {
  return tensor.dtype() == DType::bf16 && stream.state<OneDnn>().products == Bf16Products::Widened;
}

Tensor operand(Stream& stream, const Tensor& tensor) {
  return is_widened(stream, tensor) ? as_f32(stream, tensor) : tensor;
}

int64_t images_at_once(Stream& stream, const ConvProblem& p) {
  const int64_t bytes = int64_t(sizeof(float)) * std::max(p.H * p.W * p.C, p.P * p.Q * p.K);
  return std::clamp<int64_t>(kAtOnce * stream.device().threads() / bytes, 1, p.N);
}

Tensor images(const Tensor& tensor, int64_t n, int64_t count) {
  Shape shape = tensor.shape();
  const int64_t size = shape.numel() / shape[0];
  return tensor.slice(n * size, {count, shape[1], shape[2], shape[3]});
}

void convolve(Stream& stream, const ConvProblem& p, const Tensor& x, const FilterView& w,
              const Tensor& b, const Tensor& y) {
  const bool direct = y.dtype() == x.dtype() || y.dtype() == DType::f32;
  const Tensor sum = direct ? y : Tensor::empty(stream, y.shape());
  stream.state<OneDnn>().conv_fwd(p, x, w, b, sum);
  if (!direct) put_floats(sum, y, GradMode::Overwrite);
}

void convolve_bwd_data(Stream& stream, const ConvProblem& p, const Tensor& dy, const FilterView& w,
                       const Grad& dx) {
  if (is_odd_product(p, dy)) {
    if (p.spec.stride == 1 && p.spec.pad_h == 0 && p.spec.pad_w == 0) {
      const Tensor filter = w.tensor.slice(w.first, {w.tensor.numel() - w.first});
      return multiply(stream, p.N * p.P * p.Q, p.C, p.K, {dy, p.K, 1}, {filter, w.row, 1}, {},
                      dx.tensor, dx.mode);
    }
    const FilterView wide{as_f32(stream, w.tensor), w.first, w.row, w.pitch};
    return convolve_bwd_data(stream, p, as_f32(stream, dy), wide, dx);
  }
  const DType dtype = dx.tensor.dtype();
  // oneDNN cannot add here: a sum goes through a temporary.
  const bool direct =
      dx.mode == GradMode::Overwrite && (dtype == dy.dtype() || dtype == DType::f32);
  const Tensor sum = direct ? dx.tensor : Tensor::empty(stream, dx.tensor.shape());
  stream.state<OneDnn>().conv_bwd_data(p, dy, w, sum);
  if (!direct) put_floats(sum, dx.tensor, dx.mode);
}

void convolve_bwd_weight(Stream& stream, const ConvProblem& p, const Tensor& x, const Tensor& dy,
                         const FilterView& dw, GradMode mode, const Grad& db) {
  if (x.dtype() == DType::bf16 && (overruns(p) || has_idle_taps(p)))
    return convolve_bwd_weight(stream, p, as_f32(stream, x), as_f32(stream, dy), dw, mode, db);
  if (goes_by_columns(p, x, dw))
    return weight_gradient_by_columns(stream, p, x, dy, {dw.tensor, mode}, db);
  const bool add = db && db.mode == GradMode::Accumulate;
  const Tensor bias = add ? Tensor::empty(stream, {p.K}) : db.tensor;
  stream.state<OneDnn>().conv_bwd_weight(p, x, dy, dw, mode, bias);
  if (add) put_floats(bias, db.tensor, db.mode);
}

void multiply(Stream& stream, int64_t M, int64_t N, int64_t K, const MatrixView& a,
              const MatrixView& b, const Tensor& bias, const Tensor& c, GradMode mode) {
  OneDnn& dnn = stream.state<OneDnn>();
  const MatrixView left{operand(stream, a.tensor), a.row, a.column},
      right{operand(stream, b.tensor), b.row, b.column};
  if (c.dtype() == DType::f32 || c.dtype() == left.tensor.dtype())
    return dnn.matmul(M, N, K, left, right, bias, c, mode);
  const Tensor sum = Tensor::empty(stream, c.shape());
  dnn.matmul(M, N, K, left, right, bias, sum, GradMode::Overwrite);
  put_floats(sum, c, mode);
}

}  // namespace tessera::cpu
