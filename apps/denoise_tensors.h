// A .safetensors file of images through a Denoiser.
#pragma once

#include "apps/denoiser.h"

namespace tessera {

// `input` holds images [N,C,H,W] (F32) and timesteps [N] (I32 or I64, 0..999); `output` receives
// "output" [N,C,H,W] (F32). timestep, when given, must be that of every image. The network sees
// some images at a time. Returns N. Throws InputError naming file, tensor and element.
int64_t denoise_tensors(Denoiser& denoiser, const std::filesystem::path& input,
                        const std::filesystem::path& output, std::optional<int> timestep);

}  // namespace tessera
