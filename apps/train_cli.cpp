// The command line of `train`, made from the table of options.
#include "apps/train_options.h"
#include "apps/usage.h"

namespace tessera {
namespace {

constexpr const char* kFooter = R"(
Every option is also a key of the config file ("image-size": 64). The command line wins over the
config file, and that over the preset.

Files in the run's directory: config.json (--config with it reproduces the run), metrics.jsonl,
model.safetensors (the weights), checkpoint.safetensors (all state), figure.png.

Ctrl-C, SIGTERM or SIGHUP: the step is finished, a checkpoint written, the status is 130, 143 or
129; a second one stops at once. Status 2: wrong options. Status 1: any other error.)";

constexpr size_t kNameColumn = 24, kHelpColumn = 76;  // widths

// Breaks the lines of a text at spaces.
std::string wrapped(const std::string& text) {
  std::string result;
  size_t width = 0;
  std::istringstream words(text);
  for (std::string word; words >> word; width += word.size() + 1) {
    const bool fits = width + word.size() <= kHelpColumn;
    if (!fits) width = 0;
    result += (result.empty() ? "" : fits ? " " : "\n") + word;
  }
  return result;
}

}  // namespace

CommandLine parse_command_line(int argc, const char* const* argv) {
  CLI::App app("Trains a U-Net to remove noise from images.", "train");
  app.get_formatter()->column_width(kNameColumn);
  CommandLine line;
  std::map<std::string, std::string> values;
  app.set_help_flag("--help,-h", "Print this, and be done")->group("Presets");
  app.set_version_flag("--version", "tessera " TESSERA_VERSION, "Print the version, and be done")
      ->group("Presets");
  for (const TrainOption& option : train_option_table()) {
    const std::string flag = "--" + option.name, help = wrapped(option.help);
    if (option.is_flag())
      app.add_flag(flag, values[option.name], help)
          ->group(option.group)
          ->multi_option_policy(CLI::MultiOptionPolicy::Throw);
    else
      app.add_option(flag, values[option.name], help)
          ->group(option.group)
          ->type_name(option.value_name);
  }
  app.add_option("--config", line.config, "JSON file of options")
      ->group("Presets")
      ->type_name("FILE");
  app.footer(kFooter);
  line.answer = parse(app, argc, argv);
  if (line.answer) return line;
  if (app.count("--config") > 0 && line.config.empty())
    throw UsageError("--config is empty, expected FILE");
  for (const auto& [name, text] : values)
    if (app.count("--" + name) > 0) line.given[name] = {text, "--" + name};
  return line;
}

}  // namespace tessera
