#include "layers/blocks.h"

namespace tessera {

BlockOptions BlockOptions::of(const UNetConfig& config, ops::Fusion fusion) {
  return {{int(config.groups), config.norm},
          config.activation,
          fusion,
          config.down,
          config.up,
          config.no_skips};
}

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

ResidualBlock::ResidualBlock(const Scope& scope, int64_t C, int64_t K, LinearStack& times,
                             const BlockOptions& options, int64_t upsampled)
    : Module(scope),
      options_(options),
      conv1_(scope / "conv1", C, K, 3, {1, 1, 1}, FileLayout::Filter, upsampled),
      norm1_(scope / "norm1", K, options.norm),
      conv2_(scope / "conv2", K, K, 3, {1, 1, 1}),
      norm2_(scope / "norm2", K, options.norm),
      time_(times.add(scope / "time_mlp" / "1", K)) {
  if (C != K) shortcut_.emplace(scope / "residual_conv", C, K, 1, ConvSpec{});
}

Var ResidualBlock::forward(Tape& tape, const Var& x, const std::vector<Var>& times,
                           const Var& skip) const {
  ops::ResidualBlockArgs args{{norm1_.spec, options_.activation},
                              conv1_.weight.var,
                              conv1_.bias.var,
                              norm1_.weight.var,
                              norm1_.bias.var,
                              conv2_.weight.var,
                              conv2_.bias.var,
                              norm2_.weight.var,
                              norm2_.bias.var,
                              {},
                              {},
                              norm1_.batch(),
                              norm2_.batch()};
  if (shortcut_) args.shortcut_w = shortcut_->weight.var, args.shortcut_b = shortcut_->bias.var;
  Tape::Scope scope(tape, name());
  return ops::residual_block(tape, options_.fusion, x, skip, times.at(time_), args);
}

namespace {

// What halves the sides: its kernel's side, its geometry, its layout in files.
Conv2d projection(const Scope& scope, int64_t C, Down down) {
  switch (down) {
    case Down::Rearrange:
      return {scope, C, 2 * C, 2, {2, 0, 0}, FileLayout::Rearrange};
    case Down::Convolution:
      return {scope, C, 2 * C, 3, {2, 1, 1}};
    case Down::Max:
    case Down::Average:
      break;
  }
  return {scope, C, 2 * C, 1, {}};
}

// The channels of an up block's conv1 that read an image which is upsampled on the way: none where
// it is made first.
int64_t upsampled_channels(const BlockOptions& options, int64_t C) {
  const bool made = options.fusion == ops::Fusion::Off || options.norm.kind == NormKind::Batch ||
                    options.up == Up::Transposed || options.no_skips;
  return made ? 0 : C;
}

}  // namespace

DownBlock::DownBlock(const Scope& root, const std::string& name, int64_t C, LinearStack& times,
                     const BlockOptions& options)
    : Module(root / name),
      down_(options.down),
      block_(root / name / "res_block", C, C, times, options),
      projection_(projection(root / (name + "_proj"), C, options.down)) {}

Var DownBlock::forward(Tape& tape, const Var& x, const std::vector<Var>& times, Var& skip) const {
  skip = block_.forward(tape, x, times);
  if (down_ == Down::Rearrange || down_ == Down::Convolution)
    return projection_.forward(tape, skip);
  const Pooling pooling = down_ == Down::Max ? Pooling::Max : Pooling::Average;
  return projection_.forward(tape, ops::pool(tape, pooling, skip));
}

UpBlock::UpBlock(const Scope& scope, int64_t C, int64_t S, int64_t K, LinearStack& times,
                 const BlockOptions& options)
    : Module(scope),
      no_skips_(options.no_skips),
      block_(scope / "res_block", options.no_skips ? C : C + S, K, times, options,
             upsampled_channels(options, C)) {
  if (options.up == Up::Transposed) upsample_.emplace(scope / "upsample", C, C);
}

Var UpBlock::forward(Tape& tape, const Var& x, const Var& skip,
                     const std::vector<Var>& times) const {
  if (!upsample_ && !no_skips_) return block_.forward(tape, x, times, skip);
  const Var up = upsample_ ? upsample_->forward(tape, x) : ops::upsample_nearest(tape, x);
  return block_.forward(tape, no_skips_ ? up : ops::concat_channels(tape, up, skip), times);
}

}  // namespace tessera
