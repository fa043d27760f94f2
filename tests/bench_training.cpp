// Whole training steps: their time, and what they hold.
#include <fmt/format.h>

#include <iostream>

#include "core/recording.h"
#include "core/simt/options.h"
#include "tests/bench.h"
#include "tests/training_step.h"

namespace tessera {
namespace {

TrainingStep step_of(Stream& stream, const Training& training, const Mode& mode) {
  UNetConfig config;
  config.base = training.base;
  const Shape shape{training.batch, training.side, training.side, 1};
  return {stream, config, mode.precision(), random_tensor(stream, shape, mode.arithmetic.storage),
          random_tensor(stream, shape, DType::f32)};
}

}  // namespace

std::vector<Training> trainings(DeviceType type, bool tiny) {
  if (tiny) return {{"8x8 base 8 batch 2", 8, 8, 2}};
  if (type == DeviceType::cpu) return {{"quick", 32, 32, 32}, {"64x64 base 64 batch 4", 64, 64, 4}};
  return {{"lesson", 64, 64, 32}, {"lesson batch 128", 64, 64, 128}, {"quick", 32, 32, 32}};
}

void bench_training(benchmark::State& state, DeviceType type, int threads, double budget,
                    const Training& training, const Mode& mode) {
  Session session(type, threads, budget, false, "");
  TrainingStep step = step_of(session.stream(), training, mode);
  Recording recording(session.stream());
  session.measure_steps(state, [&] { recording.run([&] { step.work(); }); });
  state.counters["images/s"] =
      benchmark::Counter(double(training.batch), benchmark::Counter::kIsIterationInvariantRate);
  state.counters["peak MB"] = double(session.device()->pool()->peak_bytes()) / 1e6;
}

void print_plans() {
  const simt::ScopedOptions restore(simt::options());
  // Address space alone, and launches of no block: sizes are all that counts.
  simt::options().reserve_from = 1, simt::options().blocks = 0;
  std::cout << "| training step | parameters and batch, MB | at once, MB | planned, MB | "
               "together, MB |\n| --- | ---: | ---: | ---: | ---: |\n";
  for (const Training& training : trainings(DeviceType::cuda, false))
    for (const Mode& mode : {kF32, kTf32, kBf16}) {
      Session session(DeviceType::simt, 0, 0, false, "");
      TrainingStep step = step_of(session.stream(), training, mode);
      Recording recording(session.stream());
      const auto run = [&] { recording.run([&] { step.work(); }); };
      const Pool& pool = *session.device()->pool();
      const size_t before = pool.bytes_in_use();
      run();
      const size_t peak = pool.peak_bytes();
      run();
      const auto mb = [](size_t bytes) { return double(bytes) / 1e6; };
      std::cout << fmt::format("| {}, {} | {:.1f} | {:.1f} | {:.1f} | {:.1f} |\n", training.name,
                               mode.name, mb(before), mb(peak - before),
                               mb(pool.bytes_in_use() - before), mb(pool.bytes_in_use()))
                << std::flush;
    }
}

}  // namespace tessera
