// The blocks of the U-Net.
#pragma once

#include <optional>

#include "autograd/residual_block.h"
#include "layers/module.h"

namespace tessera {

// What all blocks of one network share.
struct BlockOptions {
  NormOptions norm = {};
  Activation activation = Activation::Gelu;
  ops::Fusion fusion = ops::Fusion::On;
  Down down = Down::Rearrange;
  Up up = Up::Nearest;
  bool no_skips = false;

  static BlockOptions of(const UNetConfig& config, ops::Fusion fusion);
};

// Timesteps t [N] i32 -> sinusoidal [N,dim] -> Linear, GELU, Linear -> [N,4 dim].
class TimestepEmbedding : public Module {
 public:
  TimestepEmbedding(const Scope& scope, int64_t dim, Activation act);
  Var forward(Tape& tape, const Tensor& t) const;

 private:
  int64_t dim_;
  Activation act_;
  Linear first_, second_;
};

// gelu(norm2(conv2(gelu(norm1(conv1(x)) + t)))) + shortcut(x). x [N,H,W,C] -> [N,H,W,K]; t [N,K] is
// the block's own of `times`, all blocks' projections of the timestep, to which it adds a layer.
// With a skip, x is the first `upsampled` of the C channels, at half the resolution. The GELUs are
// the activation of the options, the norms their norm.
class ResidualBlock : public Module {
 public:
  ResidualBlock(const Scope& scope, int64_t C, int64_t K, LinearStack& times,
                const BlockOptions& options, int64_t upsampled = 0);
  Var forward(Tape& tape, const Var& x, const std::vector<Var>& times, const Var& skip = {}) const;

 private:
  BlockOptions options_;
  Conv2d conv1_;
  Norm norm1_;
  Conv2d conv2_;
  Norm norm2_;
  size_t time_;                     // which of the times
  std::optional<Conv2d> shortcut_;  // where C != K
};

// ResidualBlock; its output is also the skip: x [N,H,W,C] -> skip [N,H,W,C], x [N,H/2,W/2,2C].
// Between them: rearrange + 1x1 projection, computed as the 2x2 stride-2 convolution that it is; or
// a 3x3 stride-2 convolution; or a 2x2 pool and a 1x1 projection.
class DownBlock : public Module {
 public:
  DownBlock(const Scope& root, const std::string& name, int64_t C, LinearStack& times,
            const BlockOptions& options);
  // Returns x and sets `skip`.
  Var forward(Tape& tape, const Var& x, const std::vector<Var>& times, Var& skip) const;

 private:
  Down down_;
  ResidualBlock block_;
  Conv2d projection_;
};

// Nearest x2 or a transposed convolution C -> C, concat with the skip (upsampled channels first)
// unless there are no skips, ResidualBlock: x [N,H/2,W/2,C], skip [N,H,W,S] -> [N,H,W,K].
class UpBlock : public Module {
 public:
  UpBlock(const Scope& scope, int64_t C, int64_t S, int64_t K, LinearStack& times,
          const BlockOptions& options);
  Var forward(Tape& tape, const Var& x, const Var& skip, const std::vector<Var>& times) const;

 private:
  bool no_skips_;
  std::optional<ConvTranspose2d> upsample_;
  ResidualBlock block_;
};

}  // namespace tessera
