// What the tests of denoise share: small networks, their files, and the program in this process.
#pragma once

#include <cmath>
#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include "apps/denoise_run.h"
#include "apps/image.h"
#include "layers/weights.h"

namespace tessera {

using Arguments = std::vector<std::string>;

// Small enough to run in a millisecond: images are multiples of 4.
inline constexpr UNetConfig kSmall{2, 8, 1, 4, 8, Activation::Gelu};

// In this process: what it prints. Throws what the program would report.
inline std::string denoise(const Arguments& arguments) {
  std::vector<const char*> argv{"denoise"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  std::ostringstream out;
  const auto options = parse_denoise_options(int(argv.size()), argv.data(), out);
  if (options) run_denoise(*options, out);
  return out.str();
}

// "--weights W --input I --output O" and what a test adds.
inline Arguments files(const std::filesystem::path& weights, const std::filesystem::path& input,
                       const std::filesystem::path& output, const Arguments& more = {}) {
  Arguments arguments{"--weights",    weights.string(), "--input",
                      input.string(), "--output",       output.string()};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

// A network with random weights, in a file and in memory.
struct Network {
  explicit Network(const UNetConfig& config, const std::filesystem::path& path)
      : stream(Device::open(DeviceType::cpu)), model(stream, config, 7) {
    save_weights(stream, model.parameters(), config, path);
  }
  // x [N,H,W,C].
  std::vector<float> forward(const Shape& shape, const std::vector<float>& x,
                             const std::vector<int32_t>& t) {
    Tape tape(stream, Tape::Mode::Inference);
    const auto input = Var::leaf(Tensor::from<float>(stream, shape, x));
    return model.forward(tape, input, Tensor::from<int32_t>(stream, {int64_t(t.size())}, t))
        .value.to_vector<float>(stream);
  }

  Stream stream;
  UNet model;
};

// Numbers in [-1, 1] that look random.
inline std::vector<float> numbers(int64_t n) {
  std::vector<float> values(static_cast<size_t>(n));
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(float(i * i % 9973));
  return values;
}

template <class T>
SafeTensorEntry entry(const std::string& name, const std::vector<int64_t>& shape,
                      const std::vector<T>& values) {
  return {name, dtype_of<T>, shape, std::as_bytes(std::span(values))};
}

inline Image picture(int width, int height, int channels) {
  Image image{width, height, channels, {}};
  for (int i = 0; i < width * height * channels; ++i)
    image.pixels.push_back(uint8_t(128 + 100 * std::sin(i * 0.37)));
  return image;
}

}  // namespace tessera
