#include "tests/bench_options.h"

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <regex>

#include "apps/device_choice.h"
#include "apps/usage.h"
#include "core/check.h"
#include "kernels/conv_tiles.h"
#include "tests/gpu_cards.h"

namespace tessera {
namespace {

// One of these at most; none of them measures what could be saved or compared.
void check_prints(const BenchOptions& options) {
  std::string mode;
  for (const auto& [given, flag] :
       {std::pair{options.tiles, "--tiles"}, std::pair{options.tune, "--tune"},
        std::pair{!options.predict.empty(), "--predict"}, std::pair{options.plan, "--plan"},
        std::pair{options.lists(), "--benchmark_list_tests"}}) {
    if (!given) continue;
    if (!mode.empty()) throw UsageError(concat(mode, " and ", flag, " do not go together"));
    mode = flag;
  }
  if (mode.empty()) return;
  for (const auto& [file, flag] :
       {std::pair{options.save, "--save"}, std::pair{options.against, "--against"}})
    if (!file.empty()) throw UsageError(concat(flag, " and ", mode, " do not go together"));
  if (!options.lists() && !options.rest.empty())
    throw UsageError(concat("'", options.rest[0], "' is not expected with ", mode));
}

}  // namespace

bool BenchOptions::lists() const {
  const std::regex no("=(0|f|n|false|no|off)", std::regex::icase);  // as Google Benchmark reads it
  const std::string flag = "--benchmark_list_tests";
  return std::ranges::any_of(rest, [&](const std::string& argument) {
    return argument.starts_with(flag) && !std::regex_match(argument.substr(flag.size()), no);
  });
}

bool BenchOptions::prints_table() const {
  const char* const variable = std::getenv("BENCHMARK_FORMAT");
  std::string format = variable ? variable : "console";
  const std::string flag = "--benchmark_format=";
  for (const std::string& argument : rest)
    if (argument.starts_with(flag)) format = argument.substr(flag.size());
  return format == "console";
}

std::optional<BenchOptions> parse_bench_options(int argc, char** argv) {
  CLI::App app("Times kernels and training steps. All other flags are Google Benchmark's.");
  std::string device = "auto";
  BenchOptions options;
  options.resources_file = KernelResources::default_file();
  // The library would take the flag behind for the value.
  const auto filled = CLI::Validator(
      [](const std::string& text) {
        return text.empty() || text.starts_with('-') ? "needs a value" : "";
      },
      "", "filled");
  app.add_option("--device", device, "auto (default), cpu, cuda or simt")
      ->check(CLI::IsMember({"auto", "cpu", "cuda", "simt"}));
  app.add_option("--cases", options.cases,
                 "benchmarks, or the small shapes of the tests (simt's default)")
      ->check(CLI::IsMember({"benchmarks", "tests"}));
  app.add_option("--threads", options.threads, "of the CPU; 0 (default): all")
      ->transform(whole_number(0, 1024));
  app.add_option("--seconds", options.seconds, "of measured work of each (default 0.2)");
  app.add_option("--save", options.save, "write the times and the peaks into this file")
      ->check(filled);
  app.add_option("--against", options.against,
                 "compare with what --save wrote into this file: print ratios of times")
      ->check(filled);
  app.add_option("--predict", options.predict,
                 "only print the launches of GPU benchmarks whose names match: their work, and the "
                 "time that it implies on some cards")
      ->check(filled);
  app.add_flag("--plan", options.plan, "only print the memory of training steps on a GPU, planned");
  app.add_flag("!--no-libraries", options.libraries, "do not time cuDNN and cuBLAS beside");
  app.add_flag("--tiles", options.tiles,
               "only print which tiles the lesson's 3x3 convolutions have, and what these take");
  const auto* tune =
      app.add_option(
             "--tune", options.tiles_file,
             "only time all of these tiles, and write the fastest into a table that is read "
             "from then on (default: tiles.txt beside the program)")
          ->expected(0, 1);
  app.add_option("--resources", options.resources_file,
                 "registers of the kernels (default: kernel-resources.md of this build)");
  app.add_flag("!--no-predictions", options.predictions,
               "do not count launches on the host model, for predictions beside what is measured");
  app.footer("--benchmark_filter=REGEX, --benchmark_list_tests, --benchmark_format=json, ...");
  app.allow_extras();
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    std::cout << app.help();
    return std::nullopt;
  } catch (const CLI::ParseError& error) {
    throw UsageError(error.what());
  }
  options.rest = app.remaining();
  options.tune = tune->count() > 0;
  if (options.tiles_file.empty()) options.tiles_file = ConvTiles::default_file();
  check_prints(options);
  options.device = chosen_device(device);
  options.tiny =
      options.cases.empty() ? options.device == DeviceType::simt : options.cases == "tests";
  return options;
}

}  // namespace tessera
