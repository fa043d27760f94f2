// Convolutions 3x3 with stride 1 by Winograd's F(4x4,3x3): a tile of 4x4 outputs takes 36 products
// a channel instead of 144. Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016
// (arXiv:1509.09308), after Winograd, 1980; the points by the measure of Barabasz and others, Error
// Analysis and Improving the Accuracy of Winograd Convolution, 2020 (arXiv:1803.10986).
#pragma once

#include <vector>

#include "kernels/cpu/convolve.h"

namespace tessera::cpu {

// Whether a convolution that reads x goes this way.
bool goes_by_winograd(Stream& stream, const ConvProblem& p, const Tensor& x);

// A part of what a convolution reads, or its gradient: the filter's channels from `first` on.
struct WinogradPart {
  Tensor x;  // [N,H,W,C]; upsampled: [N,H/2,W/2,C]
  int64_t first = 0;
  bool upsampled = false;
  GradMode mode = GradMode::Overwrite;  // of a gradient
};
using WinogradParts = std::vector<WinogradPart>;

// As convolve.h's, over the concatenation of the parts, of f32 or bf16 (computed in f32); p.C is
// not read. w is whole, dw is f32. What is infinite or NaN spreads to all outputs of its tiles.
void winograd_fwd(Stream& stream, const ConvProblem& p, const WinogradParts& x, const Tensor& w,
                  const Tensor& b, const Tensor& y);
void winograd_bwd_data(Stream& stream, const ConvProblem& p, const Tensor& dy, const Tensor& w,
                       const WinogradParts& dx);
void winograd_bwd_weight(Stream& stream, const ConvProblem& p, const WinogradParts& x,
                         const Tensor& dy, Grad dw, const Grad& db);

}  // namespace tessera::cpu
