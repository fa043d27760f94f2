// The blocks of the U-Net.
#pragma once

#include <optional>

#include "autograd/residual_block.h"
#include "layers/module.h"

namespace tessera {

// What all blocks of one network share.
struct BlockOptions {
  int groups = 8;
  Activation activation = Activation::Gelu;
  ops::Fusion fusion = ops::Fusion::On;
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

// gelu(norm2(conv2(gelu(norm1(conv1(x)) + linear(time))))) + shortcut(x). x [N,H,W,C], time [N,T]
// is the GELU of the embedding, which is the same for all blocks -> [N,H,W,K]. With a skip, x is
// the first `upsampled` of the C channels, at half the resolution.
class ResidualBlock : public Module {
 public:
  ResidualBlock(const Scope& scope, int64_t C, int64_t K, int64_t T, const BlockOptions& options,
                int64_t upsampled = 0);
  Var forward(Tape& tape, const Var& x, const Var& time, const Var& skip = {}) const;

 private:
  BlockOptions options_;
  Conv2d conv1_;
  GroupNorm norm1_;
  Conv2d conv2_;
  GroupNorm norm2_;
  Linear time_;
  std::optional<Conv2d> shortcut_;  // where C != K
};

// ResidualBlock; its output is also the skip. Then rearrange + 1x1 projection, computed as the 2x2
// stride-2 convolution that it is: x [N,H,W,C] -> skip [N,H,W,C], x [N,H/2,W/2,2C].
class DownBlock : public Module {
 public:
  DownBlock(const Scope& root, const std::string& name, int64_t C, int64_t T,
            const BlockOptions& options);
  // Returns x and sets `skip`.
  Var forward(Tape& tape, const Var& x, const Var& time, Var& skip) const;

 private:
  ResidualBlock block_;
  Conv2d projection_;
};

// Nearest x2, concat with the skip (upsampled channels first), ResidualBlock:
// x [N,H/2,W/2,C], skip [N,H,W,S] -> [N,H,W,K].
class UpBlock : public Module {
 public:
  UpBlock(const Scope& scope, int64_t C, int64_t S, int64_t K, int64_t T,
          const BlockOptions& options);
  Var forward(Tape& tape, const Var& x, const Var& skip, const Var& time) const;

 private:
  ResidualBlock block_;
};

}  // namespace tessera
