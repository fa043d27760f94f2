// The command line of `denoise`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <ostream>
#include <string>

namespace tessera {

// Options of a network (layers/unet_config.h) that somebody gave, by name, with values that they
// can have: what the weights' metadata does not say.
using GivenNetwork = std::map<std::string, std::string>;

struct DenoiseOptions {
  std::filesystem::path weights, input, output;
  std::optional<int> timestep;
  std::optional<int> image_size;
  bool force = false;  // existing outputs may be replaced

  bool add_noise = false;
  double noise_level = 0.5;
  int64_t seed = 0;  // not negative

  GivenNetwork network;

  std::string device = "auto";     // auto, cpu, cuda, simt
  std::string precision = "auto";  // auto, f32, tf32, bf16: see resolve_precision()
  int threads = 0;                 // 0: as many as the machine has
};

// Nothing when --help or --version was asked for and has been answered on `out`. Throws UsageError.
std::optional<DenoiseOptions> parse_denoise_options(int argc, const char* const* argv,
                                                    std::ostream& out);

}  // namespace tessera
