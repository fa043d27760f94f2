// How values are checked and layered.
#include "apps/train_options.h"

#include <algorithm>
#include <charconv>

#include "apps/device_choice.h"
#include "core/number.h"

namespace tessera {
namespace {

std::string to_text(double value) {
  char buffer[64];
  return {buffer, std::to_chars(buffer, std::end(buffer), value).ptr};
}

template <class T>
T parse_number(const TrainOption& option, const std::string& text, const std::string& source) {
  const auto value = number_in<T>(text);
  const auto in_range = [&](double x) { return x >= option.low && x <= option.high; };  // NaN: no
  if (value && in_range(double(*value))) return *value;
  constexpr bool kReal = std::is_same_v<T, double>;
  const auto bound = [](double x) { return kReal ? to_text(x) : std::to_string(int64_t(x)); };
  throw UsageError(concat(source, " is '", text, "', expected ",
                          kReal ? "a number from " : "an integer from ", bound(option.low), " to ",
                          bound(option.high)));
}

// Files and folders are kept as absolute paths, so that a run can be resumed from anywhere; without
// "..", unless that is another place behind a link.
std::string absolute_path(const std::string& text) {
  namespace fs = std::filesystem;
  std::error_code failed;
  const fs::path path = fs::absolute(text, failed);
  if (failed) throw InputError(concat("cannot find ", text, ": ", failed.message()));
  fs::path tidy = path.lexically_normal();
  if (!tidy.has_filename()) tidy = tidy.parent_path();  // without a slash at the end
  const bool same = !fs::exists(path, failed) || fs::equivalent(path, tidy, failed);
  return (same ? tidy : path).string();
}

std::string parse_text(const TrainOption& option, const std::string& text,
                       const std::string& source) {
  if (text.empty()) throw UsageError(concat(source, " is empty, expected ", option.value_name));
  if (!option.choices.empty() && std::ranges::find(option.choices, text) == option.choices.end())
    throw UsageError(concat(source, " is '", text, "', expected ", joined(option.choices)));
  const bool is_file = option.name == "weights" || (option.name == "data" && text != "auto");
  return is_file ? absolute_path(text) : text;
}

bool parse_flag(const std::string& text, const std::string& source) {
  if (text != "true" && text != "false")
    throw UsageError(concat(source, " is '", text, "', expected true or false"));
  return text == "true";
}

void apply(TrainOptions& options, const GivenOptions& given) {
  for (const auto& [name, value] : given) train_option(name).set(options, value.text, value.source);
  options.device = name_of(chosen_device(options.device));
  if (options.steps) options.epochs.reset();
}

void check(const TrainOptions& options) {
  const UNetConfig network = options.network();
  network.check();
  const int64_t unit = network.side_unit();
  if (!network.fits(options.image_size, options.image_size))
    throw UsageError(concat("--image-size is ", options.image_size, ", expected a multiple of ",
                            unit, " (2^--levels, --levels ", options.levels, ")"));
  // Its batch may be one image: without a variance.
  if (network.norm == NormKind::Batch && options.image_size == unit)
    throw UsageError(concat("--image-size is ", options.image_size, ", but --norm batch needs more",
                            " than the 1x1 pixels that --levels ", options.levels,
                            " leaves of it"));
}

TrainOptions preset_options(const std::string& preset) {
  TrainOptions options;
  options.preset = preset;
  if (preset == "lesson") {
    options.epochs = 50;
  } else if (preset == "quick") {
    options.image_size = 32;
    options.base = 32;
    options.steps = 600;
  } else {
    options.image_size = 16;
    options.base = 8;
    options.batch = 8;
    options.steps = 20;
    options.log_every = 5;
  }
  return options;
}

}  // namespace

UNetConfig TrainOptions::network() const {
  UNetConfig config;
  for (const UNetOption& option : unet_options())
    option.set(config, train_option(option.name).get(*this).value());
  return config;
}

std::map<std::string, std::string> TrainOptions::settings() const {
  std::map<std::string, std::string> values;
  for (const char* name : {"image-size", "batch", "lr", "noise-level", "seed"})
    values[name] = train_option(name).get(*this).value();
  const UNetConfig config = network();
  for (const UNetOption& option : unet_options())
    if (option.is_said(config)) values[option.name] = option.get(config);
  // Checkpoints did not always say these.
  if (precision != "f32") values["precision"] = precision;
  if (fusion != "on") values["fusion"] = fusion;
  return values;
}

int64_t total_steps(const TrainOptions& options, int64_t images) {
  const int64_t per_epoch = ceil_div(images, options.batch);
  return options.steps ? *options.steps : options.epochs.value() * per_epoch;
}

void TrainOption::set(TrainOptions& options, const std::string& text,
                      const std::string& source) const {
  std::visit(
      [&](auto target) {
        using T = std::remove_reference_t<decltype(options.*target)>;
        if constexpr (std::is_same_v<T, std::string>)
          options.*target = parse_text(*this, text, source);
        else if constexpr (std::is_same_v<T, double>)
          options.*target = parse_number<double>(*this, text, source);
        else if constexpr (std::is_same_v<T, bool>)
          options.*target = parse_flag(text, source);
        else
          options.*target = parse_number<int64_t>(*this, text, source);
      },
      member);
}

std::optional<std::string> TrainOption::get(const TrainOptions& options) const {
  return std::visit(
      [&](auto source) -> std::optional<std::string> {
        const auto& value = options.*source;
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<T, std::string>)
          return value.empty() ? std::nullopt : std::optional(value);
        else if constexpr (std::is_same_v<T, double>)
          return to_text(value);
        else if constexpr (std::is_same_v<T, bool>)
          return value ? "true" : "false";
        else if constexpr (std::is_same_v<T, int64_t>)
          return std::to_string(value);
        else
          return value ? std::optional(std::to_string(*value)) : std::nullopt;
      },
      member);
}

GivenOptions layered(GivenOptions under, const GivenOptions& over) {
  if (over.contains("epochs")) under.erase("steps");
  for (const auto& [name, value] : over) under[name] = value;
  return under;
}

TrainOptions make_options(const GivenOptions& given) {
  TrainOptions chosen;
  for (const char* name : {"preset", "device"})
    if (const auto value = given.find(name); value != given.end())
      train_option(name).set(chosen, value->second.text, value->second.source);
  if (chosen.preset.empty()) {
    const DeviceType device = chosen_device(chosen.device);
    chosen.preset = device == DeviceType::cuda   ? "lesson"
                    : device == DeviceType::simt ? "tiny"
                                                 : "quick";
  }

  TrainOptions options = preset_options(chosen.preset);
  if (given.contains("epochs")) options.steps.reset();
  apply(options, given);
  check(options);
  return options;
}

namespace {

// Whether both texts of an option name one file or folder.
bool is_same_file(const std::string& option, const std::string& a, const std::string& b) {
  std::error_code none;  // of what does not exist: false
  return (option == "out" || option == "data" || option == "weights") &&
         std::filesystem::equivalent(a, b, none);
}

}  // namespace

TrainOptions resumed_options(const GivenOptions& saved, const GivenOptions& given,
                             const std::filesystem::path& run) {
  TrainOptions before = make_options(saved);
  before.out = run.string();
  TrainOptions after = before;
  if (given.contains("epochs")) after.steps.reset();
  apply(after, given);
  if (after.precision == "auto") after.precision = before.precision;
  for (const auto& [name, value] : given) {
    const TrainOption& option = train_option(name);
    if (name == "resume" || option.resume == TrainOption::Resume::MayChange) continue;
    const auto had = option.get(before), wanted = option.get(after);
    if (had != wanted && !(had && is_same_file(name, *wanted, *had)))
      throw UsageError(concat(value.source, " is ", *wanted, ", but the run in ", run.string(),
                              " has ", had.value_or("none"),
                              ": only --steps, --epochs, --threads and --*-every may change"));
  }
  after.out = before.out;
  return after;
}

}  // namespace tessera
