// A trained U-Net as a function from noisy to clean images.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "apps/denoise_options.h"
#include "layers/unet.h"
#include "layers/weights.h"

namespace tessera {

class Denoiser {
 public:
  // Loads a file of weights. `given` stands in for what it does not say.
  // Throws InputError naming file and tensor, UsageError when they contradict the metadata.
  static Denoiser load(std::shared_ptr<Device> device, const std::filesystem::path& path,
                       const GivenNetwork& given = {},
                       const Precision& precision = Precision::f32());

  const UNetConfig& config() const { return model_.config(); }
  Stream& stream() const { return *stream_; }

  // Call before the tensors of a batch of this shape are made. When the batch before had another
  // one, what stream and pool keep for it is given back: a folder may hold a thousand sizes.
  void prepare(const Shape& shape);
  // noisy [N,H,W,channels] f32, t [N] i32 in 0..999 -> the images without noise, of the same shape,
  // in the type of activations. Throws InputError when the result is not finite; `origin` stands
  // for the images.
  Tensor operator()(const Tensor& noisy, const Tensor& t, const std::string& origin) const;

 private:
  Denoiser(std::shared_ptr<Device> device, const SafeTensors& weights, const UNetConfig& config,
           const Precision& precision);

  std::shared_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  Shape shape_;          // of the latest batch
  std::string weights_;  // where they came from
  UNet model_;
};

}  // namespace tessera
