// What the catalogue asks of oneDNN, in f32 and bf16. Where the CPU does not multiply bf16,
// operands are widened to f32, a few images at a time, and results are rounded: one rounding of a
// sum in f32 either way.
#pragma once

#include "kernels/cpu/onednn.h"

namespace tessera::cpu {

// `tensor` as products read it: itself, or in f32.
Tensor operand(Stream& stream, const Tensor& tensor);
// Whether operand() is a copy.
bool is_widened(Stream& stream, const Tensor& tensor);

// How many images of p to take at a time, so that what holds them in f32 stays small.
int64_t images_at_once(Stream& stream, const ConvProblem& p);

// Images n .. n+count-1 of an activation.
Tensor images(const Tensor& tensor, int64_t n, int64_t count);

// As OneDnn's, of operands; y and dx may be bf16 where the operands are f32. dx and db are
// overwritten or added to. b and db may be undefined.
void convolve(Stream& stream, const ConvProblem& p, const Tensor& x, const FilterView& w,
              const Tensor& b, const Tensor& y);
void convolve_bwd_data(Stream& stream, const ConvProblem& p, const Tensor& dy, const FilterView& w,
                       const Grad& dx);
void convolve_bwd_weight(Stream& stream, const ConvProblem& p, const Tensor& x, const Tensor& dy,
                         const FilterView& dw, GradMode mode, const Grad& db);
// As OneDnn::matmul(), of any tensors.
void multiply(Stream& stream, int64_t M, int64_t N, int64_t K, const MatrixView& a,
              const MatrixView& b, const Tensor& bias, const Tensor& c, GradMode mode);

}  // namespace tessera::cpu
