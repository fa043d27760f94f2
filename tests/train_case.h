// What the tests of train share: a data set and a network that train in milliseconds.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "apps/loader.h"
#include "apps/train_options.h"
#include "apps/trainer.h"
#include "tests/idx_files.h"
#include "tests/temp_dir.h"

namespace tessera {

// 23 images of 8x8, of which 2 are held out and 21 trained on: 6 batches of 4, the last of 1.
inline std::filesystem::path write_tiny_data(const TempDir& dir) {
  std::string pixels;
  for (int i = 0; i < 23 * 8 * 8; ++i) pixels += char((i * i * 7 + i / 64 * 31) % 251);
  const std::filesystem::path path = dir / "tiny-idx3-ubyte";
  write_text(path, idx_file(23, 8, 8, pixels));
  return path;
}

// As values of options, for the command line or a config.
inline const std::map<std::string, std::string> kTinyNetwork{
    {"image-size", "8"}, {"base", "8"},  {"levels", "1"},  {"groups", "4"},
    {"time-dim", "8"},   {"batch", "4"}, {"threads", "1"}, {"lr", "0.001"}};

inline TrainOptions tiny_options(const std::string& seed = "1",
                                 const std::map<std::string, std::string>& more = {}) {
  GivenOptions given{{"seed", {seed, "--seed"}}};
  for (const auto& [name, value] : more) given[name] = {value, "--" + name};
  for (const auto& [name, value] : kTinyNetwork) given[name] = {value, "--" + name};
  return make_options(given);
}

inline TrainOptions options_in(const std::string& precision, const std::string& seed = "1") {
  return tiny_options(seed, {{"precision", precision}});
}

// An image of 8x8, to be loaded by its number.
inline void tiny_image(int64_t i, uint8_t* out) {
  for (int at = 0; at < 64; ++at) out[at] = uint8_t((i * 37 + at * at * 5) % 256);
}

// n images of 8x8 that look random, as a batch.
inline Batch tiny_batch(int64_t n, uint32_t epoch = 0) {
  Batch batch{epoch, {}, {}};
  for (int64_t i = 0; i < n; ++i) batch.samples.push_back(i * 3 + epoch);
  for (int64_t i = 0; i < n * 64; ++i) batch.images.push_back(uint8_t((i * i * 13) % 255));
  return batch;
}

// The bytes of a tensor of floats: NaN and -0 count too.
inline std::string bits_of(Stream& stream, const Tensor& tensor) {
  const auto values = tensor.to_vector<float>(stream);
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

inline std::string state_of(Stream& stream, Trainer& trainer) {
  const Parameters& p = trainer.model().parameters();
  const std::string statistics =
      p.statistics ? bits_of(stream, p.statistics) + std::to_string(p.batches) : "";
  return bits_of(stream, p.values) + bits_of(stream, p.m) + bits_of(stream, p.v) + statistics;
}

}  // namespace tessera
