#include "apps/evaluate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "apps/batch_hint.h"

namespace tessera {
namespace {

constexpr int kTimesteps[] = {250, 500, 750};

struct Images {
  std::vector<uint8_t> pixels;
  std::vector<int64_t> samples;
};

void read_batch(const Dataset& data, int64_t first, int64_t count, size_t image_bytes,
                Images& images) {
  images.samples.resize(size_t(count));
  std::iota(images.samples.begin(), images.samples.end(), first);
  images.pixels.resize(size_t(count) * image_bytes);
  for (int64_t i = 0; i < count; ++i)
    data.held_out_image(first + i, images.pixels.data() + size_t(i) * image_bytes);
}

}  // namespace

double psnr_of(double mse) { return 10 * std::log10(4 / mse); }

double squared_error(Stream& stream, const Tensor& a, const Tensor& b) {
  const auto x = a.to_floats(stream), y = b.to_floats(stream);
  // inner_product, unlike transform_reduce, keeps the order of its sum.
  return std::inner_product(x.begin(), x.end(), y.begin(), 0.0, std::plus<>(),
                            [](double p, double q) { return (p - q) * (p - q); });
}

Denoised denoise_batch(Stream& stream, const UNet& model, const NoiseSpec& noise,
                       const std::vector<uint8_t>& images, const std::vector<int64_t>& samples,
                       int64_t image_size, int t) {
  const int64_t n = int64_t(samples.size());
  const Shape shape{n, image_size, image_size, model.config().channels};
  const Tensor bytes = Tensor::from<uint8_t>(stream, shape, images);
  const Tensor numbers = Tensor::from<int64_t>(stream, {n}, samples);
  const Tensor times = Tensor::from<int32_t>(stream, {n}, std::vector<int32_t>(size_t(n), t));
  Denoised result{Tensor::empty(stream, shape), Tensor::empty(stream, shape), {}};
  normalize_images(stream, bytes, result.clean);
  add_noise(stream, noise, NoiseUse::Evaluation, numbers, times, result.clean, result.noisy);
  Tape tape(stream, Tape::Mode::Inference);
  result.denoised = model.forward(tape, model.input(stream, result.noisy), times).value;
  return result;
}

std::optional<std::vector<EvalPoint>> evaluate(Stream& stream, const UNet& model,
                                               const Dataset& data, const EvalOptions& options,
                                               const std::function<bool()>& cancelled) {
  const int64_t count = std::min(data.held_out_size(), options.images);
  ENSURE(count > 0, "no held-out images to evaluate on");
  const int64_t values = options.image_size * options.image_size * model.config().channels;
  std::vector<EvalPoint> points;
  Images images;
  for (const int t : kTimesteps) {
    double noisy = 0, denoised = 0;
    for (int64_t first = 0; first < count; first += options.batch) {
      if (cancelled()) return std::nullopt;
      read_batch(data, first, std::min(options.batch, count - first), size_t(values), images);
      const Denoised batch = with_batch_hint(images.samples.size(), [&] {
        return denoise_batch(stream, model, options.noise, images.pixels, images.samples,
                             options.image_size, t);
      });
      noisy += squared_error(stream, batch.noisy, batch.clean);
      denoised += squared_error(stream, batch.denoised, batch.clean);
    }
    if (!std::isfinite(denoised))
      throw Error(concat("evaluation at t = ", t, ": the denoised images are not finite"));
    noisy /= double(count * values);
    denoised /= double(count * values);
    points.push_back({t, noisy, psnr_of(noisy), denoised, psnr_of(denoised)});
  }
  return points;
}

}  // namespace tessera
