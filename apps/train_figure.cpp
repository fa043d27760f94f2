#include "apps/train_figure.h"

#include <algorithm>
#include <numeric>

#include "apps/evaluate.h"
#include "apps/figure.h"

namespace tessera {
namespace {

constexpr int kTimestep = 500;
constexpr int64_t kColumns = 5;

FigureRow row(const std::string& title, const Tensor& images, Stream& stream) {
  const std::vector<float> values = images.to_floats(stream);
  const size_t size = values.size() / size_t(images.dim(0));
  FigureRow result{title, {}};
  for (size_t at = 0; at < values.size(); at += size)
    result.images.emplace_back(values.begin() + int64_t(at), values.begin() + int64_t(at + size));
  return result;
}

}  // namespace

void draw_train_figure(Stream& stream, const UNet& model, const TrainOptions& options,
                       const NoiseSpec& noise, const Dataset& data,
                       const std::filesystem::path& path) {
  const bool lesson = options.figure == "lesson";
  const int64_t count = std::min(kColumns, lesson ? data.train_size() : data.held_out_size());
  const auto bytes = size_t(options.image_size * options.image_size * options.channels);
  std::vector<int64_t> samples(static_cast<size_t>(count));
  std::iota(samples.begin(), samples.end(), 0);
  std::vector<uint8_t> images(samples.size() * bytes);
  for (const int64_t i : samples) {
    uint8_t* image = images.data() + size_t(i) * bytes;
    lesson ? data.train_image(i, image) : data.held_out_image(i, image);
  }
  NoiseSpec drawn = noise;
  if (lesson) drawn.noise_level *= 1000.0f / kTimestep;
  const Denoised batch =
      denoise_batch(stream, model, drawn, images, samples, options.image_size, kTimestep);
  write_figure(path,
               {row("Original", batch.clean, stream), row("Noisy", batch.noisy, stream),
                row("Denoised", batch.denoised, stream)},
               int(options.image_size), int(options.channels));
}

}  // namespace tessera
