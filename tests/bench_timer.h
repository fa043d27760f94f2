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

  // Starts measuring, with nothing of use in a GPU's L2 cache.
  virtual void start() = 0;
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

// Median seconds of `call` once it is warm: of as many calls as fill `budget` seconds, but one at
// least and 1,000 at most. `before` runs ahead of each and is not measured.
double median_seconds(Timer& timer, double budget, const std::function<void()>& call,
                      const std::function<void()>& before = nullptr);

}  // namespace tessera
