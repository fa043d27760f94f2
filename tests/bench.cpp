// Times every op of the case table, each direction by itself, the other kernels, and whole training
// steps: on a GPU at the shapes of the presets lesson (batch 32 and 128) and quick and over a sweep
// of sizes, on the CPU at those of batch 32, on the host model at the shapes of the tests, which
// shows that it runs and nothing else. A figure is the median of warm calls with a cold L2 cache;
// that of a training step, of rounds of ten steps in a row.
// GFLOP/s and GB/s come from the case's own cost; "of matmul" and "of copy" are shares of what a
// large product (cuBLAS, on the CPU oneDNN) and a large copy reach on the same device in the same
// run; "ours/cuDNN" is a ratio of times; on a GPU "H200 us" is what a card needs at least, "H200
// predicted us" what its launches imply (prediction.h), with the limit of the longest as label.
// Google Benchmark's flags apply, after our own:
//   bench --device cuda --benchmark_filter='conv2d/.*/bf16/lesson' --benchmark_format=json
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <optional>
#include <regex>

#include "apps/guarded_main.h"
#include "kernels/conv_tiles.h"
#include "tests/bench.h"
#include "tests/prediction.h"

namespace tessera {
namespace {

std::string without_spaces(std::string text) {
  for (char& c : text)
    if (c == ' ') c = '_';
  return text;
}

template <class Run>
void add(const std::string& name, Run run) {
  benchmark::RegisterBenchmark(name.c_str(), run)
      ->Unit(benchmark::kMillisecond)
      ->UseManualTime()
      ->Iterations(1);  // of which each is the median of many
}

struct Options {
  DeviceType device = DeviceType::cpu;
  int threads = 0;
  double seconds = 0.2;
  bool libraries = true, predictions = true, tiny = false;
  std::string cases;                 // "benchmarks", "tests", or as the device has it
  std::string predict;               // only print predictions for names that match; empty: measure
  bool plan = false;                 // only print what training steps hold on a GPU
  bool tiles = false, tune = false;  // only print or tune the convolutions' tiles
  std::string tiles_file, resources_file = KernelResources::default_file();
};

bool is_on_gpus_only(const std::string& name) {
  return name.find("batch 128") != std::string::npos || name.find("sweep") != std::string::npos;
}

// f(name, case, direction, mode) for every benchmark of an op.
template <class F>
void for_each_op(const Options& options, const F& f) {
  const std::vector<Mode> modes = modes_of(options.device);
  const CaseTable table = all_cases();
  for (const OpCase& c : options.tiny ? table.tests : table.benchmarks) {
    if (options.device != DeviceType::cuda && is_on_gpus_only(c.name)) continue;
    const bool has_product = std::ranges::count(c.roles, Role::Weight) > 0;
    for (const Direction direction : directions(c))
      for (const Mode& mode : modes)
        if (has_product || mode.arithmetic.math == Math::f32)
          f(without_spaces(concat(c.op, '/', name_of(direction), '/', mode.name, '/', c.name)), c,
            direction, mode);
  }
}
// f(name, case) for every other kernel.
template <class F>
void for_each_kernel(const Options& options, const F& f) {
  const std::vector<Mode> modes = modes_of(options.device);
  for (const KernelCase& c : kernel_cases(options.device, options.tiny)) {
    if (options.device != DeviceType::cuda && is_on_gpus_only(c.name)) continue;
    if (std::ranges::count(modes, std::string_view(c.mode.name), &Mode::name) > 0)
      f(without_spaces(concat("kernel/", c.function, '/', c.mode.name, '/', c.name)), c);
  }
}

// Prints the predictions for all benchmarks of a GPU whose names match.
void print_predictions(const Options& given) {
  Options options = given;
  options.device = DeviceType::cuda;
  options.tiny = given.cases == "tests";
  const std::regex pattern(given.predict);
  PredictionReport report(given.resources_file);
  for_each_op(options, [&](const std::string& name, const OpCase& c, Direction d, const Mode& m) {
    if (std::regex_search(name, pattern))
      report.add(name, cost_of(c, d, m.arithmetic.storage), m, count_launches(c, d, m));
  });
  for_each_kernel(options, [&](const std::string& name, const KernelCase& c) {
    if (std::regex_search(name, pattern)) report.add(name, c.cost, c.mode, count_launches(c));
  });
  if (report.empty()) throw UsageError("no benchmark has such a name");
  std::cout << report.text();
}

// Nothing is computed or allocated before a benchmark runs.
void register_all(std::optional<Session>& session, const Options& options) {
  for_each_op(options, [&](const std::string& name, const OpCase& c, Direction d, const Mode& m) {
    add(name, [=, &session](benchmark::State& state) { bench_op(state, *session, c, d, m); });
  });
  for_each_kernel(options, [&](const std::string& name, const KernelCase& c) {
    add(name, [=, &session](benchmark::State& state) { bench_kernel(state, *session, c); });
  });
  for (const Training& training : trainings(options.device, options.tiny))
    for (const Mode& mode : modes_of(options.device))
      add(without_spaces(concat("training step/", mode.name, '/', training.name)),
          [=, &session](benchmark::State& state) {
            bench_training(state, *session, training, mode);
          });
}

// Takes our flags out of the command line and leaves Google Benchmark's. Nothing when it only asked
// for help.
std::optional<Options> parse(int& argc, char** argv) {
  CLI::App app("Times kernels and training steps. All other flags are Google Benchmark's.");
  std::string device;
  Options options;
  app.add_option("--device", device, "cpu, cuda or simt; default: cuda where there is a GPU");
  app.add_option("--cases", options.cases,
                 "benchmarks, or the small shapes of the tests (simt's default)")
      ->check(CLI::IsMember({"benchmarks", "tests"}));
  app.add_option("--threads", options.threads, "of the CPU; 0 (default): all")
      ->check(CLI::Range(0, 1024));
  app.add_option("--seconds", options.seconds, "of measured work of each (default 0.2)");
  app.add_option("--predict", options.predict,
                 "only print the launches of GPU benchmarks whose names match: their work, and the "
                 "time that it implies on some cards");
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
  options.tune = tune->count() > 0;
  if (options.tiles_file.empty()) options.tiles_file = ConvTiles::default_file();
  options.device = !device.empty() ? device_type_of(device)
                   : has_gpu()     ? DeviceType::cuda
                                   : DeviceType::cpu;
  options.tiny =
      options.cases.empty() ? options.device == DeviceType::simt : options.cases == "tests";

  static std::vector<std::string> rest;  // argv points into it
  rest = app.remaining();
  argc = 1;
  for (std::string& argument : rest) argv[argc++] = argument.data();
  return options;
}

int run(int argc, char** argv) {
  const auto options = parse(argc, argv);
  if (!options) return 0;
  if (options->tiles) return print_tiles(options->resources_file), 0;
  if (options->tune)
    return tune_tiles(options->device, options->seconds, options->tiny, options->tiles_file);
  if (!options->predict.empty()) return print_predictions(*options), 0;
  if (options->plan) return print_plans(), 0;
  const bool lists = std::any_of(argv + 1, argv + argc, [](std::string_view argument) {
    return argument.starts_with("--benchmark_list_tests");
  });
  benchmark::Initialize(&argc, argv);
  if (argc > 1) throw UsageError(concat("unknown argument '", argv[1], "'"));
  std::optional<Session> session;  // names are listed without the device, too
  if (!lists) {
    session.emplace(options->device, options->threads, options->seconds, options->libraries,
                    options->predictions ? options->resources_file : "");
    session->measure_peaks();
  }
  register_all(session, *options);
  const size_t matching = benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  if (matching == 0) throw UsageError("no benchmark has such a name");
  return 0;
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  return tessera::guarded_main("bench", [&] { return tessera::run(argc, argv); });
}
