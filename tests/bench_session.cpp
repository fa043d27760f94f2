#include "kernels/conv_tiles.h"
#include "tests/bench.h"
#include "tests/prediction.h"

namespace tessera {

Session::Session(DeviceType type, int threads, double budget, bool libraries,
                 const std::string& resources_file)
    : device_(Device::open(type, threads)),
      stream_(std::make_unique<Stream>(device_)),
      timer_(Timer::make(*stream_)),
      budget_(budget) {
  if (type != DeviceType::cpu && !resources_file.empty()) resources_.emplace(resources_file);
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

void Session::measure(benchmark::State& state, const Cost& cost, const Mode& mode,
                      const std::function<void()>& call, const std::function<void()>& before,
                      const Rival& rival) {
  stream_->math = mode.arithmetic.math;
  double seconds = 0;
  for (auto _ : state) {
    seconds = median_seconds(*timer_, budget_, call, before);
    state.SetIterationTime(seconds);
  }
  for (const Card& card : kCards)
    state.counters[concat(card.name, " us")] = least_seconds(card, cost, mode) * 1e6;
  const double flops = cost.flops / seconds, bytes = cost.bytes / seconds;
  if (flops > 0) state.counters["GFLOP/s"] = flops / 1e9;
  if (bytes > 0) state.counters["GB/s"] = bytes / 1e9;
  const auto peak = matmul_.find(mode.name);
  if (flops > 0 && peak != matmul_.end()) state.counters["of matmul"] = flops / peak->second;
  if (bytes > 0 && copy_bandwidth_ > 0) state.counters["of copy"] = bytes / copy_bandwidth_;
  if (rival.seconds > 0) {
    state.counters[concat(rival.name, " ms")] = rival.seconds * 1e3;
    state.counters[concat("ours/", rival.name)] = seconds / rival.seconds;
  }
}

Counting Session::counting() const { return Counting::beside_times(device_->info().capability); }

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

void Session::measure_steps(benchmark::State& state, const std::function<void()>& step) {
  for (auto _ : state) state.SetIterationTime(seconds_per_step(*timer_, budget_, step));
}

void Session::measure_peaks() {
  const DeviceInfo& info = device_->info();
  benchmark::AddCustomContext("device", info.name);
  if (device_->type() != DeviceType::cpu)
    benchmark::AddCustomContext("tiles", ConvTiles::in_force().file());
  if (device_->type() != DeviceType::cuda || budget_ == 0) return;

  const size_t bytes = size_t{1} << 30;
  {
    const Tensor from = Tensor::zeros(*stream_, {int64_t(bytes)}, DType::u8);
    Tensor to = Tensor::empty(*stream_, from.shape(), DType::u8);
    copy_bandwidth_ = 2.0 * double(bytes) / median_seconds(*timer_, 0.05, [&] {
                        device_->runtime().copy(stream_->native(), to.raw(), from.raw(), bytes);
                      });
  }
  benchmark::AddCustomContext("copy GB/s", std::to_string(copy_bandwidth_ / 1e9));
  const std::string none = "no library, or built without its headers";
  benchmark::AddCustomContext("cuDNN", cudnn_ ? cudnn_->version() : none);
  benchmark::AddCustomContext("cuBLAS", cublas_ ? cublas_->version() : none);
  if (cublas_) {
    const int64_t n = 8192;
    for (const Mode& mode : {kF32, kTf32, kBf16}) {
      const LibraryCall call = cublas_->linear(n, n, n, Direction::Forward, mode.arithmetic);
      const double rate = 2.0 * double(n * n * n) / median_seconds(*timer_, 0.1, call);
      matmul_[mode.name] = rate;
      benchmark::AddCustomContext(concat("matmul ", mode.name, " GFLOP/s"),
                                  std::to_string(rate / 1e9));
    }
  }
  device_->pool()->trim();
}

}  // namespace tessera
