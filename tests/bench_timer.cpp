#include "tests/bench_timer.h"

#include <algorithm>
#include <chrono>
#include <vector>

namespace tessera {
namespace {

class HostTimer : public Timer {
 public:
  explicit HostTimer(Stream& stream) : stream_(stream) {}
  void start() override {
    stream_.synchronize();
    start_ = std::chrono::steady_clock::now();
  }
  double stop() override {
    stream_.synchronize();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  Stream& stream_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace

std::unique_ptr<Timer> Timer::make(Stream& stream) {
#ifdef TESSERA_HAS_CUDA
  if (stream.device().type() == DeviceType::cuda) return gpu::make_event_timer(stream);
#endif
  if (stream.device().type() == DeviceType::simt) return simt::make_event_timer(stream);
  return std::make_unique<HostTimer>(stream);
}

double median_seconds(Timer& timer, double budget, const std::function<void()>& call,
                      const std::function<void()>& before) {
  const auto measure = [&] {
    if (before) before();
    timer.start();
    call();
    return timer.stop();
  };
  // The first call makes primitives and takes memory; the second finds caches and clocks warm.
  measure();
  if (budget > 0) measure();
  std::vector<double> seconds;
  double sum = 0;
  do {
    seconds.push_back(measure());
    sum += seconds.back();
  } while (sum < budget && seconds.size() < 1000);
  std::ranges::nth_element(seconds, seconds.begin() + long(seconds.size() / 2));
  return seconds[seconds.size() / 2];
}

}  // namespace tessera
