#include "tests/bench_timer.h"

#include <algorithm>
#include <chrono>
#include <vector>

namespace tessera {
namespace {

class HostTimer : public Timer {
 public:
  explicit HostTimer(Stream& stream) : stream_(stream) {}
  void start(Begin) override {
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

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> seconds) {
  const auto middle = seconds.begin() + long(seconds.size() / 2);
  std::ranges::nth_element(seconds, middle);
  return *middle;
}

}  // namespace

double median_seconds(Timer& timer, double budget, const std::function<void()>& call,
                      const std::function<void()>& before) {
  const auto measure = [&] {
    if (before) before();
    timer.start(Timer::Begin::Cold);
    call();
    return timer.stop();
  };
  // The first call makes primitives and takes memory; the second finds caches and clocks warm.
  measure();
  if (budget > 0) measure();
  const auto begin = Clock::now();
  std::vector<double> seconds;
  double sum = 0;
  do {
    seconds.push_back(measure());
    sum += seconds.back();
  } while (sum < budget && seconds.size() < 1000 && seconds_since(begin) < 10 * budget);
  return median(std::move(seconds));
}

double seconds_per_step(Timer& timer, double budget, const std::function<void()>& step) {
  const int steps = budget > 0 ? kStepsInARow : 1;
  const size_t rounds = budget > 0 ? 3 : 1;
  const auto measure = [&] {
    timer.start(Timer::Begin::Running);
    for (int i = 0; i < steps; ++i) step();
    return timer.stop() / steps;
  };
  measure();
  const auto begin = Clock::now();
  std::vector<double> seconds;
  while (seconds.size() < rounds || seconds_since(begin) < budget) seconds.push_back(measure());
  return median(std::move(seconds));
}

}  // namespace tessera
