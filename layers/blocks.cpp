#include "layers/blocks.h"

namespace tessera {

TimestepEmbedding::TimestepEmbedding(const Scope& scope, int64_t dim, Activation act)
    : Module(scope),
      dim_(dim),
      act_(act),
      first_(scope / "mlp" / "0", dim, 4 * dim),
      second_(scope / "mlp" / "2", 4 * dim, 4 * dim) {}

Var TimestepEmbedding::forward(Tape& tape, const Tensor& t) const {
  const Var x = ops::timestep_embedding(tape, t, dim_, first_.weight.var.value.dtype());
  return second_.forward(tape, ops::activation(tape, act_, first_.forward(tape, x)));
}

ResidualBlock::ResidualBlock(const Scope& scope, int64_t C, int64_t K, int64_t T,
                             const BlockOptions& options, int64_t upsampled)
    : Module(scope),
      options_(options),
      conv1_(scope / "conv1", C, K, 3, {1, 1, 1}, FileLayout::Filter,
             options.fusion == ops::Fusion::On ? upsampled : 0),
      norm1_(scope / "norm1", K, options.groups),
      conv2_(scope / "conv2", K, K, 3, {1, 1, 1}),
      norm2_(scope / "norm2", K, options.groups),
      time_(scope / "time_mlp" / "1", T, K) {
  if (C != K) shortcut_.emplace(scope / "residual_conv", C, K, 1, ConvSpec{});
}

Var ResidualBlock::forward(Tape& tape, const Var& x, const Var& time, const Var& skip) const {
  ops::ResidualBlockArgs args{{norm1_.spec, options_.activation},
                              conv1_.weight.var,
                              conv1_.bias.var,
                              norm1_.weight.var,
                              norm1_.bias.var,
                              conv2_.weight.var,
                              conv2_.bias.var,
                              norm2_.weight.var,
                              norm2_.bias.var,
                              time_.weight.var,
                              time_.bias.var,
                              {},
                              {}};
  if (shortcut_) args.shortcut_w = shortcut_->weight.var, args.shortcut_b = shortcut_->bias.var;
  Tape::Scope scope(tape, name());
  return ops::residual_block(tape, options_.fusion, x, skip, time, args);
}

DownBlock::DownBlock(const Scope& root, const std::string& name, int64_t C, int64_t T,
                     const BlockOptions& options)
    : Module(root / name),
      block_(root / name / "res_block", C, C, T, options),
      projection_(root / (name + "_proj"), C, 2 * C, 2, {2, 0, 0}, FileLayout::Rearrange) {}

Var DownBlock::forward(Tape& tape, const Var& x, const Var& time, Var& skip) const {
  skip = block_.forward(tape, x, time);
  return projection_.forward(tape, skip);
}

UpBlock::UpBlock(const Scope& scope, int64_t C, int64_t S, int64_t K, int64_t T,
                 const BlockOptions& options)
    : Module(scope), block_(scope / "res_block", C + S, K, T, options, C) {}

Var UpBlock::forward(Tape& tape, const Var& x, const Var& skip, const Var& time) const {
  return block_.forward(tape, x, time, skip);
}

}  // namespace tessera
