// Convolution and matrix product in f32 through oneDNN: the one place that calls it.
#pragma once

#include <memory>

#include "kernels/kernels.h"

namespace tessera::cpu {

// Element (i, j) of a matrix is data[i * row + j * column].
struct MatrixView {
  const float* data;
  int64_t row, column;
};

// A KRSC filter: K filters of R x S taps of C channels each, which may be a slice of `pitch`
// channels.
template <class T>
struct FilterView {
  T* data;
  int64_t pitch;
};

// oneDNN's engine, stream and the primitives made so far, one per problem: Stream::state<OneDnn>().
// Masters of filters are KRSC; the blocked form that oneDNN computes with is made in pool memory at
// each call, which costs about 1% of a step and keeps no second copy of the weights.
class OneDnn {
 public:
  explicit OneDnn(Stream& stream);
  ~OneDnn();

  // P and Q of the problem count: the padding at the end is what they need. b may be null.
  void conv_fwd(const ConvProblem& p, const float* x, FilterView<const float> w, const float* b,
                float* y);
  void conv_bwd_data(const ConvProblem& p, const float* dy, FilterView<const float> w, float* dx);
  // db may be null. dw is overwritten or added to, db overwritten.
  void conv_bwd_weight(const ConvProblem& p, const float* x, const float* dy, FilterView<float> dw,
                       GradMode mode, float* db);
  // c [M,N] (row-major) = a [M,K] b [K,N] + bias [N], or c += a b (then without bias).
  void matmul(int64_t M, int64_t N, int64_t K, MatrixView a, MatrixView b, const float* bias,
              float* c, GradMode mode);

  // Primitives made so far: constant after the first training step.
  int64_t primitives() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tessera::cpu
