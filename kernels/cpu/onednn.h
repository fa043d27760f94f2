// Convolution and matrix product through oneDNN: the one place that calls it. Operands are f32, or
// bf16 where the CPU multiplies that; sums are f32 in both.
#pragma once

#include <memory>

#include "kernels/kernels.h"

namespace tessera::cpu {

// How operands in bf16 are multiplied: widened to f32 before (convolve.h), or as they are, by
// vectors at twice the rate of f32 (AVX512_BF16) or by tiles at many times that (AMX).
enum class Bf16Products { Widened, Vectors, Tiles };
// What this CPU can and oneDNN may use: its variable DNNL_MAX_CPU_ISA counts. With mere AVX-512
// oneDNN would emulate products of bf16.
Bf16Products bf16_products();

// Whether oneDNN may use AVX-512.
bool has_avx512();

// c = a b, or c += a b, in f32, by the calling thread where others run beside it: a [M,K] (ta 'T':
// [K,M]), b [K,N] and c [M,N] have so many floats from row to row. Whether it could.
bool product(char ta, int64_t M, int64_t N, int64_t K, const float* a, int64_t a_row,
             const float* b, int64_t b_row, float* c, int64_t c_row, bool add);

// Element (i, j) of a matrix is element i * row + j * column of the tensor.
struct MatrixView {
  Tensor tensor;
  int64_t row, column;
};

// A filter [K,R,S,C] that may be a slice of channels of another: its tap (r,s), channel c of filter
// k is element first + k * row + (r * S + s) * pitch + c of the tensor.
struct FilterView {
  Tensor tensor;
  int64_t first, row, pitch;
  // The channels of w [K,R,S,C] from `first` on.
  static FilterView of(const Tensor& w, int64_t first = 0) {
    return {w, first, w.dim(1) * w.dim(2) * w.dim(3), w.dim(3)};
  }
};

// oneDNN's engine, stream and the primitives made so far, one per problem: Stream::state<OneDnn>().
// Masters of filters are KRSC; the blocked form that oneDNN computes with is made in pool memory at
// each call, which costs about 1% of a step and keeps no second copy of the weights.
class OneDnn {
 public:
  explicit OneDnn(Stream& stream);
  ~OneDnn();

  // P and Q of the problem count: the padding at the end is what they need. What is read, x, w and
  // dy, is of one type; what is written is of that or f32; biases b [K] are f32 and may be
  // undefined.
  void conv_fwd(const ConvProblem& p, const Tensor& x, const FilterView& w, const Tensor& b,
                const Tensor& y);
  void conv_bwd_data(const ConvProblem& p, const Tensor& dy, const FilterView& w, const Tensor& dx);
  // dw and db are f32; dw is overwritten or added to, db overwritten.
  void conv_bwd_weight(const ConvProblem& p, const Tensor& x, const Tensor& dy,
                       const FilterView& dw, GradMode mode, const Tensor& db);
  // c [M,N] (row-major) = a [M,K] b [K,N] + bias [N], or c += a b (then without bias).
  void matmul(int64_t M, int64_t N, int64_t K, const MatrixView& a, const MatrixView& b,
              const Tensor& bias, const Tensor& c, GradMode mode);

  // Primitives made so far: constant after the first training step.
  int64_t primitives() const;

  Bf16Products products = bf16_products();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tessera::cpu
