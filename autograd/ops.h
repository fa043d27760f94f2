// The differentiable operations: each computes its output by the catalogue (kernels/kernels.h,
// where shapes are said) and records its way back on the tape.
#pragma once

#include "autograd/tape.h"

namespace tessera::ops {

// b may be a Var without value.
Var conv2d(Tape& tape, const ConvSpec& spec, const Var& x, const Var& w, const Var& b);
Var linear(Tape& tape, const Var& x, const Var& w, const Var& b);
// [N,K_i] each, K_i = widths[i].
std::vector<Var> split_columns(Tape& tape, const Var& x, const std::vector<int64_t>& widths);
Var activation(Tape& tape, Activation act, const Var& x);
Var group_norm(Tape& tape, const GroupNormSpec& spec, const Var& x, const Var& gamma,
               const Var& beta);
// t and residual may be Vars without value.
Var group_norm_act(Tape& tape, const NormAct& spec, const Var& x, const Var& gamma, const Var& beta,
                   const Var& t = {}, const Var& residual = {});
// The running statistics of a BatchNorm layer, [C] in the type of gamma: the mean starts at 0, the
// variance at 1.
struct BatchNormState {
  Tensor mean, var;
  float eps = 1e-5f, momentum = 0.1f;
};
// training: by the moments of the batch, at least two values a channel, which `state` takes in
// (N = 0 changes nothing). Else by those of `state`: for inference, so it throws when the tape
// records and a gradient is wanted.
Var batch_norm(Tape& tape, const Var& x, const Var& gamma, const Var& beta,
               const BatchNormState& state, bool training);
// b may be a Var without value.
Var conv_transpose2d(Tape& tape, const Var& x, const Var& w, const Var& b);
Var pool(Tape& tape, Pooling pooling, const Var& x);
Var space_to_channel(Tape& tape, const Var& x);
Var channel_to_space(Tape& tape, const Var& x);
Var upsample_nearest(Tape& tape, const Var& x);
Var concat_channels(Tape& tape, const Var& a, const Var& b);
Var concat_upsample(Tape& tape, const Var& low, const Var& skip);
// conv2d, 1x1 or 3x3 with same padding, of concat(upsample(low), skip).
Var upcat_conv2d(Tape& tape, const Var& low, const Var& skip, const Var& w, const Var& b);
Var add(Tape& tape, const Var& a, const Var& b);
Var add_broadcast(Tape& tape, const Var& x, const Var& t);
// t [N] i32; no gradient.
Var timestep_embedding(Tape& tape, const Tensor& t, int64_t dim, DType dtype = DType::f32);
Var mse(Tape& tape, const Var& prediction, const Tensor& target);

}  // namespace tessera::ops
