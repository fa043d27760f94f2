// Batches of shuffled images, prepared by a background thread while the step before is computed.
// The order of epoch e is a Fisher-Yates shuffle by the numbers of (seed, e): the batch of any step
// follows from the seed and the step alone.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "apps/schedule.h"

namespace tessera {

struct Batch {
  uint32_t epoch = 0;
  std::vector<int64_t> samples;  // [n] positions in the data set
  std::vector<uint8_t> images;   // [n,S,S,C]
};

// The numbers 0 .. n-1 (n < 2^32) in the order of an epoch.
std::vector<uint32_t> shuffled(int64_t n, uint64_t seed, uint32_t epoch);

class Loader {
 public:
  // Writes image i to `out`. Called by the background thread alone; must not use OpenMP, whose
  // threads would compete with those of the step.
  using ReadImage = std::function<void(int64_t i, uint8_t* out)>;

  // Prepares the batches of steps first .. schedule.total.
  Loader(const Schedule& schedule, uint64_t seed, size_t image_bytes, ReadImage read,
         int64_t first);

  // Swaps the next batch into `batch`, whose memory is used again. Rethrows what `read` threw.
  void next(Batch& batch);

 private:
  void run(std::stop_token stop, int64_t step);
  void fill(Batch& batch, int64_t step);

  const Schedule schedule_;
  const uint64_t seed_;
  const size_t image_bytes_;
  const ReadImage read_;
  std::vector<uint32_t> order_;  // of epoch order_epoch_; the background thread's
  int64_t order_epoch_ = -1;

  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<Batch> ready_;
  std::vector<Batch> spare_;  // whose memory is free
  std::exception_ptr error_;
  std::jthread thread_;  // last: it uses all of the above
};

}  // namespace tessera
