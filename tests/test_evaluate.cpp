// Evaluations and the figure of a run, against what denoise_batch() makes of the same images.
#include "apps/evaluate.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <numeric>

#include "apps/image.h"
#include "apps/train_figure.h"
#include "tests/train_case.h"

using namespace tessera;

TEST_CASE("an evaluation takes each held-out image once, in batches of any size", "[evaluate]") {
  const TempDir dir;
  std::string pixels;
  for (int i = 0; i < 70 * 64; ++i) pixels += char((i * i * 7 + i / 64 * 31) % 251);
  write_text(dir / "images", idx_file(70, 8, 8, pixels));
  const Dataset data = Dataset::open((dir / "images").string(), 8, 1);
  REQUIRE(data.held_out_size() == 7);
  Stream stream(Device::open(DeviceType::cpu, 1));
  UNet model(stream, tiny_options().network(), 1);
  const NoiseSpec noise{1, 0, 0.5f};
  const auto never = [] { return false; };
  for (const int64_t most : {7, 5})
    for (const int64_t batch : {1, 3, 7, 100}) {
      CAPTURE(most, batch);
      std::vector<uint8_t> images(size_t(most) * 64);
      std::vector<int64_t> samples(static_cast<size_t>(most));
      std::iota(samples.begin(), samples.end(), 0);
      for (const int64_t i : samples) data.held_out_image(i, images.data() + i * 64);
      const auto points = evaluate(stream, model, data, {noise, 8, batch, most}, never).value();
      for (const EvalPoint& p : points) {
        const Denoised all = denoise_batch(stream, model, noise, images, samples, 8, p.t);
        const double values = double(most) * 64;
        CHECK(p.noisy_mse == Approx(squared_error(stream, all.noisy, all.clean) / values));
        CHECK(p.denoised_mse == Approx(squared_error(stream, all.denoised, all.clean) / values));
      }
    }
  // The default is more than there are.
  const auto points = evaluate(stream, model, data, {noise, 8, 4}, never).value();
  CHECK(points[1].denoised_mse ==
        evaluate(stream, model, data, {noise, 8, 4, 7}, never).value()[1].denoised_mse);

  int asked = 0;
  CHECK_FALSE(evaluate(stream, model, data, {noise, 8, 3}, [&] { return ++asked == 5; }));
  CHECK(asked == 5);
  for (Parameter& p : model.parameters().list())
    if (p.name == "final_conv.2.bias") fill(stream, p.master, INFINITY);
  CHECK(message_of<Error>([&] {
          evaluate(stream, model, data, {noise, 8, 3}, never);
        }) == "evaluation at t = 250: the denoised images are not finite");
}

TEST_CASE("the figure of train shows what was asked for", "[evaluate]") {
  const TempDir dir;
  const Dataset data = Dataset::open(write_tiny_data(dir).string(), 8, 1);
  Stream stream(Device::open(DeviceType::cpu, 1));
  const NoiseSpec noise{1, 0, 0.5f};
  for (const std::string figure : {"matched", "lesson"}) {
    CAPTURE(figure);
    const bool lesson = figure == "lesson";
    const TrainOptions options = tiny_options("1", {{"figure", figure}});
    UNet model(stream, options.network(), 1);
    draw_train_figure(stream, model, options, noise, data, dir / "f.png");
    const Image image = read_image(dir / "f.png", 1);
    std::vector<uint8_t> pixels(64);
    lesson ? data.train_image(0, pixels.data()) : data.held_out_image(0, pixels.data());
    const Denoised first =
        denoise_batch(stream, model, {1, 0, lesson ? 1.0f : 0.5f}, pixels, {0}, 8, 500);
    // Three rows of 18 for a title, 8 below it and 96 for the images, 20 apart; 12x12 for a pixel.
    int row = 0;
    for (const Tensor& tensor : {first.clean, first.noisy, first.denoised}) {
      const std::vector<float> values = tensor.to_floats(stream);
      for (int i = 0; i < 64; ++i) {
        const size_t x = 20 + size_t(i) % 8 * 12,
                     y = 20 + size_t(row) * 142 + 26 + size_t(i) / 8 * 12;
        CHECK(int(image.pixels[y * size_t(image.width) + x]) == int(to_byte(values[size_t(i)])));
      }
      ++row;
    }
  }
}
