// How long work on a stream takes: by CUDA events on a GPU and its host model, by a clock on the
// CPU.
#pragma once

#include <functional>
#include <memory>

#include "core/device.h"

namespace tessera {

class Timer {
 public:
  static std::unique_ptr<Timer> make(Stream& stream);
  virtual ~Timer() = default;

  // Cold: with nothing of use in a GPU's L2 cache, and the GPU begins only when all of the work is
  // queued. Running: as it comes, the host's part included where the GPU waits for it.
  enum class Begin { Cold, Running };
  // Starts measuring.
  virtual void start(Begin begin) = 0;
  // Waits for the work since start(): the seconds that it took.
  virtual double stop() = 0;
};

// Against CUDA and against its host model.
namespace simt {
std::unique_ptr<Timer> make_event_timer(Stream& stream);
}
namespace gpu {
std::unique_ptr<Timer> make_event_timer(Stream& stream);
}

// Median seconds of `call`, begun cold, once it is warm: of as many calls as fill `budget` seconds,
// but one at least and 1,000 at most, and none is begun after ten times the budget. `before` runs
// ahead of each and is not measured.
double median_seconds(Timer& timer, double budget, const std::function<void()>& call,
                      const std::function<void()>& before = nullptr);

// Seconds of a step of a loop that waits for nothing: kStepsInARow steps between two waits, by
// their number; the median of three such rounds at least, after one that warms up. Without a
// budget, of one step. tests/bench_pytorch.py measures in the same way.
inline constexpr int kStepsInARow = 10;
double seconds_per_step(Timer& timer, double budget, const std::function<void()>& step);

}  // namespace tessera
