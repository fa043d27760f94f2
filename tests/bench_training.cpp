// Whole training steps: their time, and what they hold.
#include <fmt/format.h>

#include <iostream>

#include "core/recording.h"
#include "core/simt/options.h"
#include "tests/prediction.h"
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

// Of all products of a step: each filter meets each pixel of its output once forward and twice on
// the way back, where the first one's data gradient, which is not made, counts for little. As plain
// operations would compute them: an up block's sub-pixel form needs fewer.
double product_flops(const Training& training) {
  const UNetConfig config;
  const double N = double(training.batch), T = double(4 * config.time_dim);
  double products = 0, pixels = N * double(training.side * training.side),
         width = double(training.base);
  const auto conv = [&](double taps, double C, double K) { products += pixels * taps * C * K; };
  const auto linear = [&](double C, double K) { products += N * C * K; };
  conv(9, double(config.channels), width);
  conv(1, width, double(config.channels));
  linear(double(config.time_dim), T), linear(T, T);
  for (int64_t level = 0; level < config.levels; ++level) {
    conv(9, width, width), conv(9, width, width), linear(T, width);  // down
    conv(9, 3 * width, width), conv(9, width, width), conv(1, 3 * width, width), linear(T, width);
    pixels /= 4;
    conv(4, width, 2 * width);
    width *= 2;
  }
  conv(9, width, width), conv(9, width, width), linear(T, width);
  return 2 * 3 * products;
}

}  // namespace

std::vector<Training> trainings(DeviceType type, bool tiny) {
  if (tiny) return {{"8x8 base 8 batch 2", 8, 8, 2}};
  if (type == DeviceType::cpu) return {{"quick", 32, 32, 32}, {"64x64 base 64 batch 4", 64, 64, 4}};
  return {{"lesson", 64, 64, 32}, {"lesson batch 128", 64, 64, 128}, {"quick", 32, 32, 32}};
}

Cost cost_of(const Training& training, const std::vector<LaunchWork>& launches) {
  Cost cost{product_flops(training), 0};
  for (const LaunchWork& launch : launches)
    if (launch.only != 80) cost.bytes += launch.read + launch.written;
  return cost;
}

double bench_training(benchmark::State& state, Session& session, const Training& training,
                      const Mode& mode) {
  const Device& device = *session.device();
  Session own(device.type(), device.threads(), session.budget(), false, "");
  TrainingStep step = step_of(own.stream(), training, mode);
  Recording recording(own.stream());
  const double seconds = own.measure_steps(state, [&] { recording.run([&] { step.work(); }); });
  std::vector<LaunchWork> launches;
  if (session.counts()) launches = count_launches(training, mode, session.counting());
  if (session.predicts()) session.report(state, launches, mode);
  session.report_rates(state, cost_of(training, launches), mode, seconds);
  state.counters["images/s"] =
      benchmark::Counter(double(training.batch), benchmark::Counter::kIsIterationInvariantRate);
  state.counters["peak MB"] = double(own.device()->pool()->peak_bytes()) / 1e6;
  return seconds;
}

std::vector<LaunchWork> count_launches(const Training& training, const Mode& mode,
                                       const Counting& counting) {
  return count_launches(
      [&](Stream& stream) {
        stream.math = mode.arithmetic.math;
        const std::shared_ptr<TrainingStep> step(new TrainingStep(step_of(stream, training, mode)));
        // The update first: blocks that are left out leave gradients that may not be finite.
        return CountedCall{{}, [=] { step->update({}), step->gradients(); }};
      },
      0, counting);
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
