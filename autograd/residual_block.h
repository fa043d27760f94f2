// The U-Net's ResidualBlock as one operation:
//   h = act(norm1(conv1(x)) + t)                 norms and act: those of its spec
//   y = act(norm2(conv2(h))) + shortcut(x)       shortcut: identity, or a 1x1 convolution
// It is the unit of fusion: the plain path records the operations of ops.h, the fused one is a
// single node of the tape with a schedule of its own. Both give the same numbers up to rounding.
#pragma once

#include <optional>

#include "autograd/ops.h"

namespace tessera::ops {

enum class Fusion { Off, On };

struct ResidualBlockArgs {
  NormAct spec;
  Var conv1_w, conv1_b, norm1_gamma, norm1_beta;
  Var conv2_w, conv2_b, norm2_gamma, norm2_beta;
  Var shortcut_w, shortcut_b;  // [K,1,1,C], [K]; without value: identity
  // Norms that are BatchNorms, in place of those of the spec: training on a tape that records.
  std::optional<BatchNormState> batch1 = {}, batch2 = {};
};

// x [N,H,W,C], t [N,K], the block's projection of the timestep -> [N,H,W,K]. With `skip` [N,H,W,B],
// x is [N,H/2,W/2,A] and the block's input is concat(upsample(x), skip), which the fused path never
// makes. With BatchNorms the path is the plain one: their moments are known only after a pass over
// the whole batch. t may still be computed beside the stream: it is joined before t is read.
Var residual_block(Tape& tape, Fusion fusion, const Var& x, const Var& skip, const Var& t,
                   const ResidualBlockArgs& args);

}  // namespace tessera::ops
