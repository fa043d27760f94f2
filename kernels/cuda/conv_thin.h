// Convolutions between one channel and many, as at the ends of a network. Their products are few:
// as matrix products they would multiply padding, so they have kernels that are bound by memory.
#pragma once

#include "kernels/cuda/conv_problem.h"

namespace tessera::TESSERA_CUDA::conv {

// x [N,H,W,1], 3x3 or 1x1 with any padding: fwd and bwd_weight.
inline bool is_from_one(const Sizes& s) {
  return s.C == 1 && s.stride == 1 && s.R == s.S && (s.R == 1 || s.R == 3);
}
// y [N,H,W,1], 1x1: fwd, bwd_data and bwd_weight.
inline bool is_to_one(const Sizes& s) {
  return s.K == 1 && s.stride == 1 && s.R == 1 && s.S == 1 && s.pad_h == 0 && s.pad_w == 0;
}

// What conv2d_fwd, conv2d_bwd_data and conv2d_bwd_weight are then.
void thin_fwd(Stream& stream, const Sizes& s, const Tensor& x, const Tensor& w, const Tensor& b,
              Tensor& y);
void thin_bwd_data(Stream& stream, const Sizes& s, const Tensor& dy, const Tensor& w, Grad dx);
void thin_bwd_weight(Stream& stream, const Sizes& s, const Tensor& x, const Tensor& dy, Grad dw,
                     Grad db);

}  // namespace tessera::TESSERA_CUDA::conv
