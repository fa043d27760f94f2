// The time-conditioned U-Net of NVIDIA's course "Generative AI with Diffusion Models".
#pragma once

#include <memory>
#include <vector>

#include "layers/blocks.h"

namespace tessera {

class UNet {
 public:
  // Draws the initial parameters from `seed`. The stream computes by precision.math from here on.
  UNet(Stream& stream, const UNetConfig& config, uint64_t seed,
       ops::Fusion fusion = ops::Fusion::On, const Precision& precision = Precision::f32());

  UNet(const UNet&) = delete;  // its modules refer to its parameters
  UNet& operator=(const UNet&) = delete;

  // Noisy images x [N,H,W,channels] in the type of activations, timesteps t [N] i32 -> denoised
  // images, like x.
  Var forward(Tape& tape, const Var& x, const Tensor& t) const;

  // f32 images as forward() takes them.
  Var input(Stream& stream, const Tensor& images) const;

  const UNetConfig& config() const { return config_; }
  const Precision& precision() const { return precision_; }
  Parameters& parameters() { return parameters_; }

 private:
  UNetConfig config_;
  ops::Fusion fusion_;
  Precision precision_;
  Parameters parameters_;
  std::unique_ptr<TimestepEmbedding> time_embed_;
  std::unique_ptr<LinearStack> times_;  // of all blocks
  std::unique_ptr<Conv2d> init_conv_;
  std::vector<std::unique_ptr<DownBlock>> down_;
  std::unique_ptr<ResidualBlock> bottleneck_;
  std::vector<std::unique_ptr<UpBlock>> up_;
  std::unique_ptr<Norm> final_norm_;
  std::unique_ptr<Conv2d> final_conv_;
};

}  // namespace tessera
