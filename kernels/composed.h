// Fused operations of the catalogue as the plain ones that they stand for: what a backend without a
// kernel of its own does.
#pragma once

#include "kernels/dispatch.h"

namespace tessera::composed {

// h = act(group_norm(x) + t), which may be x.
inline void activated(Stream& stream, const NormAct& spec, const Tensor& x, Tensor moments,
                      const Tensor& gamma, const Tensor& beta, const Tensor& t, Tensor h) {
  group_norm_act_fwd(stream, spec, x, gamma, beta, t, {}, h, moments, /*known=*/true);
}

// db [K], which may be undefined: the sum of dy [N,P,Q,K] over all pixels, as of one image.
inline void sum_pixels(Stream& stream, const Tensor& dy, Grad db) {
  if (!db) return;
  if (dy.numel() == 0) return start_sum(stream, db);
  add_broadcast_bwd_t(stream, dy.reshape({1, dy.dim(0) * dy.dim(1), dy.dim(2), dy.dim(3)}),
                      {db.tensor.reshape({1, dy.dim(3)}), db.mode});
}

inline void norm_act_conv2d_bwd(Stream& stream, const NormAct& spec, const ConvSpec& conv,
                                const Tensor& x, const Tensor& moments, const Tensor& gamma,
                                const Tensor& beta, const Tensor& t, const Tensor& w,
                                const Tensor& dy, Grad dx, Grad dgamma, Grad dbeta, Grad dt,
                                const FilterForms& forms) {
  Tensor d = dx && dx.mode == GradMode::Overwrite ? dx.tensor
                                                  : Tensor::empty(stream, x.shape(), x.dtype());
  conv2d_bwd_data(stream, conv, dy, w, {d}, forms);
  group_norm_act_bwd(stream, spec, x, moments, gamma, beta, t, d, dx, dgamma, dbeta, dt);
}

}  // namespace tessera::composed
