#include "layers/unet_config.h"

#include <algorithm>

#include "core/number.h"

namespace tessera {
namespace {

UNetOption number(const char* name, int64_t UNetConfig::*member) {
  return {name,
          {},
          [=](const UNetConfig& config) { return std::to_string(config.*member); },
          [=](UNetConfig& config, const std::string& text) { config.*member = std::stoll(text); },
          /*always=*/true};
}

// values: the names of the choices, by number.
template <class E>
UNetOption choice(const char* name, E UNetConfig::*member, std::vector<std::string> values,
                  bool always = false) {
  const auto get = [=](const UNetConfig& config) { return values[size_t(config.*member)]; };
  const auto set = [=](UNetConfig& config, const std::string& text) {
    config.*member = E(std::ranges::find(values, text) - values.begin());
  };
  return {name, values, get, set, always};
}

}  // namespace

const std::vector<UNetOption>& unet_options() {
  using C = UNetConfig;
  static const std::vector<UNetOption> options{
      number("base", &C::base),
      number("levels", &C::levels),
      number("channels", &C::channels),
      number("time-dim", &C::time_dim),
      number("groups", &C::groups),
      choice("activation", &C::activation, {"gelu", "gelu-tanh", "relu"}, /*always=*/true),
      choice("down", &C::down, {"rearrange", "conv", "max", "avg"}),
      choice("up", &C::up, {"nearest", "transposed"}),
      choice("norm", &C::norm, {"group", "batch", "layer", "instance"}),
      choice("no-skips", &C::no_skips, {"false", "true"}),
      choice("no-time-gelu", &C::no_time_gelu, {"false", "true"})};
  return options;
}

const UNetOption& unet_option(const std::string& name) {
  const auto found = std::ranges::find(unet_options(), name, &UNetOption::name);
  ENSURE(found != unet_options().end(), "no option '", name, "' of a network");
  return *found;
}

bool UNetOption::takes(const std::string& text) const {
  if (!values.empty()) return std::ranges::find(values, text) != values.end();
  return number_in<int64_t>(text).has_value();
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i)
    text += (i == 0 ? "" : i + 1 == words.size() ? " or " : ", ") + words[i];
  return text;
}

void UNetConfig::check() const {
  const auto within = [](const char* flag, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high)
      throw UsageError(concat(flag, " is ", value, ", expected ", low, " to ", high));
  };
  within("--levels", levels, 1, 8);
  within("--base", base, 1, 4096);
  within("--groups", groups, 1, 4096);
  within("--time-dim", time_dim, 2, 4096);
  if (channels != 1 && channels != 3)
    throw UsageError(concat("--channels is ", channels, ", expected 1 (grey) or 3 (colour)"));
  if (norm == NormKind::Group && base % groups != 0)
    throw UsageError(concat("--base ", base, " is not a multiple of --groups ", groups));
  if (time_dim % 2 != 0)
    throw UsageError(concat("--time-dim is ", time_dim, ", expected an even number"));
}

bool UNetConfig::fits(int64_t height, int64_t width) const {
  return height > 0 && width > 0 && height % side_unit() == 0 && width % side_unit() == 0;
}

void UNetConfig::check_image(int64_t height, int64_t width) const {
  if (!fits(height, width))
    throw UsageError(concat("image size ", height, "x", width, " does not fit ", levels,
                            " levels: expected positive multiples of ", side_unit()));
}

}  // namespace tessera
