// Times every op of the case table at the shapes of the presets lesson and quick, forward, and
// forward + backward, and whole training steps. GFLOP/s and GB/s come from the case's own cost.
// Google Benchmark's flags apply:
//   bench --benchmark_filter='conv2d.*quick' --benchmark_format=json
#include <benchmark/benchmark.h>

#include "layers/unet.h"
#include "tests/op_runner.h"

namespace tessera {
namespace {

void set_rates(benchmark::State& state, const Cost& cost) {
  const auto rate = [&](double amount) {
    return benchmark::Counter(amount / 1e9, benchmark::Counter::kIsIterationInvariantRate);
  };
  if (cost.flops > 0) state.counters["GFLOP/s"] = rate(cost.flops);
  if (cost.bytes > 0) state.counters["GB/s"] = rate(cost.bytes);
}

void bench_op(benchmark::State& state, const std::shared_ptr<Device>& device, const OpCase& c,
              bool backward) {
  Stream stream(device);
  std::vector<Var> inputs;
  const size_t wanted = c.inputs.size() - size_t(c.constants);
  for (const Values& values : draw_inputs(c, Numbers::Normal))
    inputs.push_back(
        Var::leaf(tensor_of(stream, values, DType::f32), backward && inputs.size() < wanted));
  const auto forward = [&](Tape& tape) { return c.apply(tape, inputs); };
  Tensor dy;
  const auto step = [&] {
    Tape tape(stream, backward ? Tape::Mode::Train : Tape::Mode::Inference);
    const Var y = forward(tape);
    if (!backward) return;
    if (!dy) dy = tensor_of(stream, upstream(c, Numbers::Normal, y.shape()), DType::f32);
    for (Var& input : inputs) input.slot->written = false;
    tape.backward_from(y, dy);
  };
  step();  // makes primitives and takes memory
  for (auto _ : state) step();
  Cost cost = c.forward;
  if (backward) cost.flops += c.backward.flops, cost.bytes += c.backward.bytes;
  set_rates(state, cost);
  device->pool()->trim();
}

struct Training {
  const char* name;
  int64_t side, base, batch;
};

// Forward, loss, backward and Adam on one batch, without reading data.
void bench_training(benchmark::State& state, const std::shared_ptr<Device>& device,
                    const Training& training) {
  Stream stream(device);
  UNetConfig config;
  config.base = training.base;
  UNet net(stream, config, 0);
  net.parameters().prepare_training(stream);
  Adam adam(stream, net.parameters(), {});
  const Shape shape{training.batch, training.side, training.side, 1};
  const Var noisy =
      Var::leaf(tensor_of(stream, draw(Numbers::Normal, "noisy", 0, shape), DType::f32));
  const Tensor clean = tensor_of(stream, draw(Numbers::Normal, "clean", 0, shape), DType::f32);
  const Tensor t = Tensor::zeros(stream, {training.batch}, DType::i32);
  const auto step = [&] {
    net.parameters().clear_gradients();
    Tape tape(stream);
    tape.backward(ops::mse(tape, net.forward(tape, noisy, t), clean));
    net.parameters().finish_gradients(stream);
    adam.gradient_norm();
    adam.update();
  };
  step();
  for (auto _ : state) step();
  state.counters["images/s"] =
      benchmark::Counter(double(training.batch), benchmark::Counter::kIsIterationInvariantRate);
  state.counters["peak MB"] = double(device->pool()->peak_bytes()) / 1e6;
  device->pool()->trim();
}

std::string without_spaces(std::string text) {
  for (char& c : text)
    if (c == ' ') c = '_';
  return text;
}

void register_all(const std::shared_ptr<Device>& device) {
  const auto add = [](const std::string& name, auto run) {
    benchmark::RegisterBenchmark(without_spaces(name).c_str(), run)
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
  };
  for (const OpCase& c : all_cases().benchmarks)
    for (bool backward : {false, true})
      add(concat(c.op, backward ? "/both/" : "/forward/", c.name),
          [=](benchmark::State& state) { bench_op(state, device, c, backward); });
  // A device of its own for each: peak memory is the step's.
  for (const Training& training :
       {Training{"quick", 32, 32, 32}, Training{"64x64 base 64 batch 4", 64, 64, 4}})
    add(concat("training step/", training.name), [=](benchmark::State& state) {
      bench_training(state, Device::open(DeviceType::cpu, device->threads()), training);
    });
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  tessera::register_all(tessera::Device::open(tessera::DeviceType::cpu));
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
