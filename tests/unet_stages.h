// Runs the blocks of a U-Net one by one and notes the shape after each step, as (C, side).
#pragma once

#include <map>
#include <string>

#include "layers/unet.h"

namespace tessera {

// "down1 skip" -> [64,64]: channels and side of everything that UNet::forward makes on one image.
inline std::map<std::string, Shape> stage_shapes(Stream& stream, const UNetConfig& config,
                                                 int64_t side) {
  Parameters parameters;
  const Scope root(parameters);
  const BlockOptions options = BlockOptions::of(config, ops::Fusion::On);
  const int64_t T = 4 * config.time_dim;
  const TimestepEmbedding embedding(root / "time_embed", config.time_dim, config.activation);
  LinearStack projections(root / "time_mlps", T);
  const Conv2d first(root / "init_conv", config.channels, config.base, 3, {1, 1, 1});
  std::vector<std::unique_ptr<DownBlock>> down;
  std::vector<std::unique_ptr<UpBlock>> up;
  for (int64_t level = 0; level < config.levels; ++level) {
    const int64_t width = config.base << level;
    const std::string number = std::to_string(level + 1);
    down.push_back(std::make_unique<DownBlock>(root, "down" + number, width, projections, options));
    up.push_back(std::make_unique<UpBlock>(root / ("up" + number), 2 * width, width, width,
                                           projections, options));
  }
  const int64_t top = config.base << config.levels;
  const ResidualBlock bottleneck(root / "bottleneck", top, top, projections, options);
  parameters.allocate(stream, Precision::f32(), 0);

  std::map<std::string, Shape> shapes;
  Tape tape(stream, Tape::Mode::Inference);
  const auto note = [&](const std::string& name, const Var& x) {
    REQUIRE(x.shape()[1] == x.shape()[2]);
    shapes[name] = {x.shape()[3], x.shape()[1]};
  };
  const Var time = embedding.forward(tape, Tensor::zeros(stream, {1}, DType::i32));
  REQUIRE(time.shape() == Shape{1, T});
  const std::vector<Var> times = projections.forward(tape, time);
  Var h = first.forward(tape, Var::leaf(Tensor::zeros(stream, {1, side, side, config.channels})));
  note("init_conv", h);
  std::vector<Var> skips(down.size());
  for (size_t i = 0; i < down.size(); ++i) {
    const std::string name = "down" + std::to_string(i + 1);
    h = down[i]->forward(tape, h, times, skips[i]);
    note(name + " skip", skips[i]);
    note(name + " rearranged", ops::space_to_channel(tape, skips[i]));
    note(name + "_proj", h);
  }
  h = bottleneck.forward(tape, h, times);
  note("bottleneck", h);
  for (size_t i = up.size(); i-- > 0;) {
    const std::string name = "up" + std::to_string(i + 1);
    note(name + " joined", ops::concat_upsample(tape, h, skips[i]));
    h = up[i]->forward(tape, h, skips[i], times);
    note(name, h);
  }
  return shapes;
}

}  // namespace tessera
