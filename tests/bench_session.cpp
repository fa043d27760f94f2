#include "tests/bench.h"
#include "tests/prediction.h"

namespace tessera {

std::vector<Mode> modes_of(DeviceType type) {
  if (type == DeviceType::cpu) return {kF32, kBf16};
  return {kF32, kTf32, kBf16};
}

Session::Session(DeviceType type, int threads, double budget, bool libraries,
                 const std::string& resources_file)
    : device_(Device::open(type, threads)),
      stream_(std::make_unique<Stream>(device_)),
      timer_(Timer::make(*stream_)),
      budget_(budget) {
  if (!resources_file.empty()) resources_.emplace(resources_file);
  if (!libraries) return;
  cudnn_ = open_cudnn(*stream_, *timer_);
  cublas_ = open_cublas(*stream_);
}

Rival Session::rival(const OpCase& c, Direction direction, const Arithmetic& arithmetic) {
  Rival rival;
  LibraryCall call;
  if (cudnn_ && c.conv) {
    rival.name = "cuDNN";
    const bool bias = c.inputs.size() == c.roles.size();  // the last role
    call = cudnn_->conv2d(*c.conv, bias, direction, arithmetic);
  } else if (cublas_ && c.op == "linear") {
    rival.name = "cuBLAS";
    const Shape &x = c.inputs[0], &w = c.inputs[1];
    call = cublas_->linear(x[0], x[1], w[0], direction, arithmetic);
  }
  if (call) rival.seconds = median_seconds(*timer_, budget_, call);
  return rival;
}

double Session::measure(benchmark::State& state, const Cost& cost, const Mode& mode,
                        const std::function<void()>& call, const std::function<void()>& before,
                        const Rival& rival) {
  stream_->math = mode.arithmetic.math;
  double seconds = 0;
  for (auto _ : state) {
    seconds = median_seconds(*timer_, budget_, call, before);
    state.SetIterationTime(seconds);
  }
  if (device_->type() != DeviceType::cpu)
    for (const Card& card : kCards)
      state.counters[concat(card.name, " us")] = least_seconds(card, cost, mode) * 1e6;
  report_rates(state, cost, mode, seconds);
  if (rival.seconds > 0) {
    state.counters[concat(rival.name, " ms")] = rival.seconds * 1e3;
    state.counters[concat("ours/", rival.name)] = seconds / rival.seconds;
  }
  return seconds;
}

void Session::report_rates(benchmark::State& state, const Cost& cost, const Mode& mode,
                           double seconds) const {
  const double flops = cost.flops / seconds, bytes = cost.bytes / seconds;
  if (flops > 0) state.counters["GFLOP/s"] = flops / 1e9;
  if (bytes > 0) state.counters["GB/s"] = bytes / 1e9;
  const auto peak = peaks_.matmul.find(mode.name);
  if (flops > 0 && peak != peaks_.matmul.end()) state.counters["of matmul"] = flops / peak->second;
  if (bytes > 0 && peaks_.copy > 0) state.counters["of copy"] = bytes / peaks_.copy;
}

Counting Session::counting() const {
  const bool is_cpu = device_->type() == DeviceType::cpu;
  return Counting::beside_times(is_cpu ? 90 : device_->info().capability);
}

void Session::report(benchmark::State& state, const std::vector<LaunchWork>& launches,
                     const Mode& mode) {
  std::string limits;
  for (const Card& card : kCards) {
    // On a GPU: of the cards like it.
    const int here = device_->info().capability;
    if (device_->type() == DeviceType::cuda && card.architecture != here) continue;
    Prediction longest{};
    double sum = 0;
    for (const LaunchWork& work : launches) {
      const Prediction p = predict(work, card, *resources_, mode);
      if (p.seconds() > longest.seconds()) longest = p;
      sum += p.seconds();
    }
    state.counters[concat(card.name, " predicted us")] = sum * 1e6;
    limits += concat(limits.empty() ? "" : ", ", card.name, ": ", longest.limit());
  }
  state.SetLabel(limits);
}

double Session::measure_steps(benchmark::State& state, const std::function<void()>& step) {
  double seconds = 0;
  for (auto _ : state) {
    seconds = seconds_per_step(*timer_, budget_, step);
    state.SetIterationTime(seconds);
  }
  return seconds;
}

void Session::release_memory() {
  stream_->synchronize();
  device_->pool()->trim();
}

}  // namespace tessera
