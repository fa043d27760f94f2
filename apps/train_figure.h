// figure.png of a run: five images before, with and after the noise.
#pragma once

#include <filesystem>

#include "apps/dataset.h"
#include "apps/train_options.h"
#include "layers/unet.h"

namespace tessera {

// options.figure "matched": held-out images with the noise of t = 500. "lesson": training images
// with that of t = 1000, while the network is told 500, as the course draws them.
void draw_train_figure(Stream& stream, const UNet& model, const TrainOptions& options,
                       const NoiseSpec& noise, const Dataset& data,
                       const std::filesystem::path& path);

}  // namespace tessera
