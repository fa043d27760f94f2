// What `train` can be told: one struct, and one table of its options from which the command line,
// the config file and the help are made. Values are layered: command line over config file over
// preset.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "layers/unet.h"

namespace tessera {

struct TrainOptions {
  std::string preset;
  std::string data = "auto";  // or an absolute path
  int64_t image_size = 64;

  int64_t base = 64, levels = 3, channels = 1, groups = 8, time_dim = 128;
  std::string activation = "gelu", down = "rearrange", up = "nearest", norm = "group";
  bool no_skips = false, no_time_gelu = false;
  std::string weights;  // absolute path, "": start from random numbers

  int64_t batch = 32;
  std::optional<int64_t> epochs, steps;  // steps is the total and wins; one of them is set
  double lr = 1e-4;
  double noise_level = 0.5;
  int64_t seed = 0;

  std::string device = "auto";
  std::string precision = "auto";  // see resolve_precision()
  std::string fusion = "on";       // or "off"
  int64_t threads = 0;             // 0: as many as the machine has

  std::string out;     // "": runs/<time>
  std::string resume;  // "": a new run
  int64_t checkpoint_every = 500;
  std::optional<int64_t> eval_every;  // none: at each epoch's end and at the end
  int64_t log_every = 50;
  std::string figure = "matched";

  UNetConfig network() const;
  // What a step's result depends on, by option name: a checkpoint goes with these values only.
  std::map<std::string, std::string> settings() const;
};

// Steps that a run has in all, with this many training images.
int64_t total_steps(const TrainOptions& options, int64_t images);

// One option: "--name VALUE" on the command line, "name": VALUE in a config file. One that is true
// or false is "--name" on the command line.
struct TrainOption {
  using Member =
      std::variant<int64_t TrainOptions::*, std::optional<int64_t> TrainOptions::*,
                   double TrainOptions::*, std::string TrainOptions::*, bool TrainOptions::*>;
  enum class Resume { Fixed, MayChange };

  std::string name, group, value_name, help;
  Member member;
  double low = 0, high = 0;               // of numbers, inclusive
  std::vector<std::string> choices = {};  // of texts; empty: any
  Resume resume = Resume::Fixed;

  // Sets the member. `source` names the value in errors. Throws UsageError.
  void set(TrainOptions& options, const std::string& text, const std::string& source) const;
  // The member as text that set() takes; none when it is unset or "".
  std::optional<std::string> get(const TrainOptions& options) const;
  bool is_text() const { return std::holds_alternative<std::string TrainOptions::*>(member); }
  bool is_real() const { return std::holds_alternative<double TrainOptions::*>(member); }
  bool is_flag() const { return std::holds_alternative<bool TrainOptions::*>(member); }
};

const std::vector<TrainOption>& train_option_table();
const TrainOption& train_option(const std::string& name);

// Values by option name as somebody gave them, with where they come from ("--batch",
// "c.json: key 'batch'").
struct GivenValue {
  std::string text, source;
};
using GivenOptions = std::map<std::string, GivenValue>;

// `over` on top of `under`. Who gives --epochs without --steps unsets the steps below.
GivenOptions layered(GivenOptions under, const GivenOptions& over);

// The options of a new run: the given values over those of the preset. Throws UsageError.
TrainOptions make_options(const GivenOptions& given);

// The options with which a run goes on that had `saved`. Throws UsageError if a given value
// contradicts one that may not change; `run` names the run in the message.
TrainOptions resumed_options(const GivenOptions& saved, const GivenOptions& given,
                             const std::filesystem::path& run);

// A config file: a JSON object of option names and values. Throws UsageError for unknown or
// repeated keys and for values of a wrong type, InputError when it cannot be read as JSON.
GivenOptions read_config(const std::filesystem::path& path);
// The same from memory. `origin` stands for the file in errors.
GivenOptions parse_config(const std::string& text, const std::string& origin);
// The text of a config file that reproduces the run: everything but where it writes to.
std::string config_text(const TrainOptions& options);

// What the command line says.
struct CommandLine {
  std::optional<std::string> answer;  // of --help and --version: print it, and be done
  std::string config;                 // --config, or ""
  GivenOptions given;
};
// Throws UsageError.
CommandLine parse_command_line(int argc, const char* const* argv);

}  // namespace tessera
