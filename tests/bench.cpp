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
#include <algorithm>
#include <iostream>
#include <optional>
#include <regex>

#include "apps/guarded_main.h"
#include "tests/bench.h"
#include "tests/bench_compare.h"
#include "tests/bench_options.h"
#include "tests/prediction.h"

namespace tessera {
namespace {

std::string without_spaces(std::string text) {
  for (char& c : text)
    if (c == ' ') c = '_';
  return text;
}

bool is_on_gpus_only(const std::string& name) {
  return name.find("batch 128") != std::string::npos || name.find("sweep") != std::string::npos;
}

// f(name, case, direction, mode) for every benchmark of an op.
template <class F>
void for_each_op(const BenchOptions& options, const F& f) {
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
void for_each_kernel(const BenchOptions& options, const F& f) {
  const std::vector<Mode> modes = modes_of(options.device);
  for (const KernelCase& c : kernel_cases(options.tiny)) {
    if (options.device != DeviceType::cuda && is_on_gpus_only(c.name)) continue;
    if (std::ranges::count(modes, std::string_view(c.mode.name), &Mode::name) > 0)
      f(without_spaces(concat("kernel/", c.function, '/', c.mode.name, '/', c.name)), c);
  }
}

std::string training_name(const Training& training, const Mode& mode) {
  return without_spaces(concat("training step/", mode.name, '/', training.name));
}

// Prints the predictions for all benchmarks of a GPU whose names match.
void print_predictions(const BenchOptions& given) {
  BenchOptions options = given;
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
  for (const Training& training : trainings(options.device, options.tiny))
    for (const Mode& mode : modes_of(options.device)) {
      const std::string name = training_name(training, mode);
      if (!std::regex_search(name, pattern)) continue;
      const auto launches = count_launches(training, mode);
      report.add_step(name, cost_of(training, launches), mode, launches);
    }
  if (report.empty()) throw UsageError("no benchmark has such a name");
  std::cout << report.text();
}

// run(state) gives the seconds, which are noted.
template <class Run>
void add(BenchRun& results, const std::string& name, Run run) {
  benchmark::RegisterBenchmark(
      name.c_str(), [=, &results](benchmark::State& state) { results.add(name, run(state)); })
      ->Unit(benchmark::kMillisecond)
      ->UseManualTime()
      ->Iterations(1);  // of which each is the median of many
}

// Nothing is computed or allocated before a benchmark runs.
void register_all(std::optional<Session>& session, BenchRun& results, const BenchOptions& options) {
  using benchmark::State;
  for_each_op(options, [&](const std::string& name, const OpCase& c, Direction d, const Mode& m) {
    add(results, name, [=, &session](State& state) { return bench_op(state, *session, c, d, m); });
  });
  for_each_kernel(options, [&](const std::string& name, const KernelCase& c) {
    add(results, name, [=, &session](State& state) { return bench_kernel(state, *session, c); });
  });
  for (const Training& training : trainings(options.device, options.tiny))
    for (const Mode& mode : modes_of(options.device))
      add(results, training_name(training, mode),
          [=, &session](State& state) { return bench_training(state, *session, training, mode); });
}

// What is known of a run before its benchmarks.
BenchRun run_on(const Session& session) {
  const Device& device = *session.device();
  BenchRun run;
  run.device = machine_name(device);
  run.threads = device.type() == DeviceType::cuda ? 0 : device.threads();
  for (const Mode& mode : modes_of(device.type())) run.precisions.push_back(mode.name);
  run.peaks = session.peaks().figures();
  return run;
}

// Registers and runs what Google Benchmark's flags ask for. Whatever is wrong with the files of
// --save and --against is said before.
void measure(BenchOptions options) {
  std::optional<BenchRun> then;
  if (!options.against.empty()) then = load_run(options.against);
  if (!options.save.empty()) expect_writable(options.save);

  std::string program = "bench";
  std::vector<char*> argv{program.data()};
  for (std::string& argument : options.rest) argv.push_back(argument.data());
  argv.push_back(nullptr);
  int argc = int(argv.size()) - 1;
  benchmark::Initialize(&argc, argv.data());
  if (argc > 1) throw UsageError(concat("unknown argument '", argv[1], "'"));

  std::optional<Session> session;  // names are listed without the device, too
  BenchRun now;
  if (!options.lists()) {
    session.emplace(options.device, options.threads, options.seconds, options.libraries,
                    options.predictions ? options.resources_file : "");
    session->measure_peaks();
    now = run_on(*session);
  }
  if (then && !difference(*then, now).empty())
    std::cerr << "bench: warning: " << options.against << ": " << difference(*then, now) << '\n';
  register_all(session, now, options);
  const size_t matching = benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  if (matching == 0) throw UsageError("no benchmark has such a name");
  if (!options.save.empty()) save(now, options.save);
  // Behind a report for programs it would be in the way.
  if (then) (options.prints_table() ? std::cout : std::cerr) << comparison(*then, now);
}

int run(int argc, char** argv) {
  const auto options = parse_bench_options(argc, argv);
  if (!options) return 0;
  if (options->tiles) return print_tiles(options->resources_file), 0;
  if (options->tune)
    return tune_tiles(options->device, options->seconds, options->tiny, options->tiles_file);
  if (!options->predict.empty()) return print_predictions(*options), 0;
  if (options->plan) return print_plans(), 0;
  return measure(*options), 0;
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  return tessera::guarded_main("bench", [&] { return tessera::run(argc, argv); });
}
