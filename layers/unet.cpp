#include "layers/unet.h"

namespace tessera {

UNet::UNet(Stream& stream, const UNetConfig& config, uint64_t seed, ops::Fusion fusion,
           const Precision& precision)
    : config_(config), fusion_(fusion), precision_(precision) {
  config.check();
  stream.math = precision.math;
  const Scope root(parameters_);
  const BlockOptions options = BlockOptions::of(config, fusion);
  const int64_t top = config.base << config.levels;
  const auto level_name = [](const char* part, int64_t level) {
    return part + std::to_string(level + 1);
  };

  time_embed_ =
      std::make_unique<TimestepEmbedding>(root / "time_embed", config.time_dim, config.activation);
  times_ = std::make_unique<LinearStack>(root / "time_mlps", 4 * config.time_dim);
  init_conv_ = std::make_unique<Conv2d>(root / "init_conv", config.channels, config.base, 3,
                                        ConvSpec{1, 1, 1});
  for (int64_t level = 0; level < config.levels; ++level)
    down_.push_back(std::make_unique<DownBlock>(root, level_name("down", level),
                                                config.base << level, *times_, options));
  bottleneck_ = std::make_unique<ResidualBlock>(root / "bottleneck", top, top, *times_, options);
  for (int64_t level = config.levels - 1; level >= 0; --level) {
    const int64_t width = config.base << level;
    up_.push_back(std::make_unique<UpBlock>(root / level_name("up", level), 2 * width, width, width,
                                            *times_, options));
  }
  final_norm_ = std::make_unique<Norm>(root / "final_conv" / "0", config.base, options.norm);
  final_conv_ = std::make_unique<Conv2d>(root / "final_conv" / "2", config.base, config.channels, 1,
                                         ConvSpec{});
  parameters_.allocate(stream, precision, seed);
}

Var UNet::input(Stream& stream, const Tensor& images) const {
  if (images.dtype() == precision_.storage) return Var::leaf(images);
  Tensor rounded = Tensor::empty(stream, images.shape(), precision_.storage);
  copy_rounded(stream, images, rounded);
  return Var::leaf(rounded);
}

Var UNet::forward(Tape& tape, const Var& x, const Tensor& t) const {
  config_.check_image(x.shape()[1], x.shape()[2]);
  std::vector<Var> times;  // small launches, beside the first convolutions; a block joins them
  tape.beside([&, t] {
    Var time = time_embed_->forward(tape, t);
    if (!config_.no_time_gelu) time = ops::activation(tape, config_.activation, time);
    times = times_->forward(tape, time);
  });
  Var h = init_conv_->forward(tape, x);
  std::vector<Var> skips(down_.size());
  for (size_t i = 0; i < down_.size(); ++i) h = down_[i]->forward(tape, h, times, skips[i]);
  h = bottleneck_->forward(tape, h, times);
  for (const auto& up : up_) {
    h = up->forward(tape, h, skips.back(), times);
    skips.pop_back();
  }
  Tape::Scope scope(tape, final_norm_->name());
  h = fusion_ == ops::Fusion::On && !final_norm_->is_batch()
          ? ops::group_norm_act(tape, {final_norm_->spec, config_.activation}, h,
                                final_norm_->weight.var, final_norm_->bias.var)
          : ops::activation(tape, config_.activation, final_norm_->forward(tape, h));
  return final_conv_->forward(tape, h);
}

}  // namespace tessera
