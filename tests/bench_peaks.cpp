// What a device reaches at best: what its figures are compared with.
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <limits>

#include "kernels/conv_tiles.h"
#include "tests/bench.h"

namespace tessera {
namespace {

// The shortest of five calls at least, and of as many as fill half a second: on a machine that
// others use too, what was not disturbed.
double shortest_seconds(Timer& timer, const std::function<void()>& call) {
  call();
  double shortest = std::numeric_limits<double>::infinity(), sum = 0;
  for (int calls = 0; calls < 5 || sum < 0.5; ++calls) {
    timer.start(Timer::Begin::Running);
    call();
    const double seconds = timer.stop();
    shortest = std::min(shortest, seconds), sum += seconds;
  }
  return shortest;
}

// Of all of the machine's caches together.
size_t cache_bytes() {
  const benchmark::CPUInfo& cpu = benchmark::CPUInfo::Get();
  size_t sum = 0;
  for (const auto& cache : cpu.caches)
    sum += size_t(cache.size) * size_t(cpu.num_cpus) / size_t(std::max(cache.num_sharing, 1));
  return sum;
}

// Bytes/s, read and written, of a copy that no cache holds, by all threads.
double copy_rate_of_cpu(Stream& stream, Timer& timer) {
  const size_t bytes = std::max(size_t{256} << 20, 2 * cache_bytes());
  const Shape shape{int64_t(bytes)};
  Tensor from = Tensor::empty(stream, shape, DType::u8),
         to = Tensor::empty(stream, shape, DType::u8);
  stream.device().use_threads();
  const auto by_all = [&](const auto& work) {
#pragma omp parallel
    {
      const size_t thread = size_t(omp_get_thread_num()), threads = size_t(omp_get_num_threads());
      const size_t first = bytes * thread / threads;
      work(to.raw() + first, from.raw() + first, bytes * (thread + 1) / threads - first);
    }
  };
  // Who writes a page first has it near.
  by_all([](std::byte* target, std::byte* source, size_t n) {
    std::memset(target, 1, n), std::memset(source, 1, n);
  });
  return 2.0 * double(bytes) / shortest_seconds(timer, [&] {
           by_all([](std::byte* target, const std::byte* source, size_t n) {
             std::memcpy(target, source, n);
           });
         });
}

// Flop/s of a large product (oneDNN).
double matmul_rate_of_cpu(Stream& stream, Timer& timer, const Mode& mode) {
  const int64_t n = 2048;
  const DType storage = mode.arithmetic.storage;
  const Tensor x = random_tensor(stream, {n, n}, storage),
               w = random_tensor(stream, {n, n}, storage);
  Tensor y = Tensor::empty(stream, {n, n}, storage);
  return 2.0 * double(n * n * n) /
         shortest_seconds(timer, [&] { linear_fwd(stream, x, w, {}, y); });
}

double copy_rate_of_gpu(Stream& stream, Timer& timer) {
  const size_t bytes = size_t{1} << 30;
  const Tensor from = Tensor::zeros(stream, {int64_t(bytes)}, DType::u8);
  Tensor to = Tensor::empty(stream, from.shape(), DType::u8);
  return 2.0 * double(bytes) / median_seconds(timer, 0.05, [&] {
           stream.device().runtime().copy(stream.native(), to.raw(), from.raw(), bytes);
         });
}

double matmul_rate_of_gpu(CublasLibrary& cublas, Timer& timer, const Mode& mode) {
  const int64_t n = 8192;
  const LibraryCall call = cublas.linear(n, n, n, Direction::Forward, mode.arithmetic);
  return 2.0 * double(n * n * n) / median_seconds(timer, 0.1, call);
}

}  // namespace

std::string machine_name(const Device& device) {
  if (device.type() != DeviceType::cpu) return device.info().name;
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name") && line.find(": ") != std::string::npos)
      return line.substr(line.find(": ") + 2);
  return device.info().name;
}

std::map<std::string, double> Peaks::figures() const {
  std::map<std::string, double> result;
  if (copy > 0) result["copy GB/s"] = copy / 1e9;
  for (const auto& [mode, rate] : matmul) result[concat("matmul ", mode, " GFLOP/s")] = rate / 1e9;
  return result;
}

void Session::measure_peaks() {
  benchmark::AddCustomContext("device", machine_name(*device_));
  const bool is_cpu = device_->type() == DeviceType::cpu;
  if (is_cpu) benchmark::AddCustomContext("threads", std::to_string(device_->threads()));
  if (!is_cpu) benchmark::AddCustomContext("tiles", ConvTiles::in_force().file());
  if (device_->type() == DeviceType::simt || budget_ == 0) return;

  peaks_.copy = is_cpu ? copy_rate_of_cpu(*stream_, *timer_) : copy_rate_of_gpu(*stream_, *timer_);
  for (const Mode& mode : modes_of(device_->type()))
    if (is_cpu)
      peaks_.matmul[mode.name] = matmul_rate_of_cpu(*stream_, *timer_, mode);
    else if (cublas_)
      peaks_.matmul[mode.name] = matmul_rate_of_gpu(*cublas_, *timer_, mode);
  for (const auto& [name, value] : peaks_.figures())
    benchmark::AddCustomContext(name, std::to_string(value));
  release_memory();
  if (is_cpu) return;
  const std::string none = "no library, or built without its headers";
  benchmark::AddCustomContext("cuDNN", cudnn_ ? cudnn_->version() : none);
  benchmark::AddCustomContext("cuBLAS", cublas_ ? cublas_->version() : none);
}

}  // namespace tessera
