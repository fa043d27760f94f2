// How well a network denoises images that it was not trained on.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "apps/dataset.h"
#include "layers/unet.h"

namespace tessera {

struct EvalPoint {
  int t;
  double noisy_mse, noisy_psnr, denoised_mse, denoised_psnr;
};

// Peak signal-to-noise ratio in dB of images in [-1, 1], whose peak-to-peak value is 2.
double psnr_of(double mse);

// Sum of (a - b)^2 over all elements, in double and in storage order. One shape, f32 or bf16 each.
double squared_error(Stream& stream, const Tensor& a, const Tensor& b);

// Noisy images and what the network makes of them, [n,S,S,C] each.
struct Denoised {
  Tensor clean, noisy, denoised;
};

// Denoises images u8 [n,S,S,C] with the evaluation noise of (noise.seed, sample number, t).
Denoised denoise_batch(Stream& stream, const UNet& model, const NoiseSpec& noise,
                       const std::vector<uint8_t>& images, const std::vector<int64_t>& samples,
                       int64_t image_size, int t);

struct EvalOptions {
  NoiseSpec noise;
  int64_t image_size, batch;
  int64_t images = 512;  // of the held-out ones, at most
};

// At t = 250, 500 and 750 over the first held-out images: mean squared errors over all pixels,
// not clamped. None when `cancelled` says so in between. Throws Error when a result is not finite.
std::optional<std::vector<EvalPoint>> evaluate(Stream& stream, const UNet& model,
                                               const Dataset& data, const EvalOptions& options,
                                               const std::function<bool()>& cancelled);

}  // namespace tessera
