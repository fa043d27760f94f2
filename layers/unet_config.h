// What defines a network: its sizes, and the choices between the variants that the lesson compares.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace tessera {

// In the order of their names in unet_options().
enum class Down { Rearrange, Convolution, Max, Average };
enum class Up { Nearest, Transposed };
enum class NormKind { Group, Batch, Layer, Instance };

// Files carry it.
struct UNetConfig {
  int64_t levels = 3;      // down blocks; widths are base * 2^level
  int64_t base = 64;       // channels at full resolution
  int64_t channels = 1;    // of the image
  int64_t groups = 8;      // of every norm, where it is NormKind::Group
  int64_t time_dim = 128;  // of the sinusoidal embedding; the blocks see 4 times as much
  Activation activation = Activation::Gelu;
  Down down = Down::Rearrange;
  Up up = Up::Nearest;
  NormKind norm = NormKind::Group;
  bool no_skips = false;      // up blocks see the upsampled half of their input only
  bool no_time_gelu = false;  // the blocks see the embedding as it is

  // Throws UsageError naming the flag that is out of range.
  void check() const;
  // Sides of images must be positive multiples of this: every level halves them.
  int64_t side_unit() const { return int64_t{1} << levels; }
  bool fits(int64_t height, int64_t width) const;
  // Throws UsageError when they do not.
  void check_image(int64_t height, int64_t width) const;
  bool operator==(const UNetConfig&) const = default;
};

// One member of UNetConfig as text, under the name of its flag: "time-dim", "no-skips".
struct UNetOption {
  std::string name;
  std::vector<std::string> values;  // that it can have; empty: whole numbers
  std::function<std::string(const UNetConfig&)> get;
  // The text is one of the values, or a number of 64 bits.
  std::function<void(UNetConfig&, const std::string&)> set;

  // Files say it always. What came later they say where it is not the default: other files are as
  // they always were.
  bool always;

  bool is_said(const UNetConfig& config) const { return always || get(config) != get({}); }
  // Whether networks that differ in it alone are different ones.
  bool matters(const UNetConfig& config) const {
    return name != "groups" || config.norm == NormKind::Group;
  }
  bool is_flag() const { return values == std::vector<std::string>{"false", "true"}; }
  bool takes(const std::string& text) const;
};

// Every member, in the order in which they are compared.
const std::vector<UNetOption>& unet_options();
const UNetOption& unet_option(const std::string& name);

// "a, b or c", for messages.
std::string joined(const std::vector<std::string>& words);

}  // namespace tessera
