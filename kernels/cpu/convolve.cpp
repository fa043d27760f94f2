#include "kernels/cpu/convolve.h"

#include "kernels/cpu/loops.h"

namespace tessera::cpu {
namespace {

constexpr int64_t kAtOnce = 1 << 20;  // bytes of one activation in f32, for each thread

}  // namespace

bool is_widened(Stream& stream, const Tensor& tensor) {
  return tensor.dtype() == DType::bf16 && !stream.state<OneDnn>().bf16_products;
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
