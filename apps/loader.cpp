#include "apps/loader.h"

#include <numeric>
#include <utility>

#include "core/check.h"
#include "core/rng.h"

namespace tessera {
namespace {

constexpr size_t kAhead = 3;  // batches ready at most

}  // namespace

std::vector<uint32_t> shuffled(int64_t n, uint64_t seed, uint32_t epoch) {
  ENSURE(n >= 0 && n <= int64_t{UINT32_MAX}, "cannot shuffle ", n, " images");
  std::vector<uint32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0u);
  const RngKey key{seed, epoch, 0, Purpose::shuffle};
  for (size_t i = order.size(); i-- > 1;) {
    const uint32_t word = random4(key, uint32_t(i / 4))[i % 4];
    std::swap(order[i], order[uniform_below(word, uint32_t(i + 1))]);
  }
  return order;
}

Loader::Loader(const Schedule& schedule, uint64_t seed, size_t image_bytes, ReadImage read,
               int64_t first)
    : schedule_(schedule),
      seed_(seed),
      image_bytes_(image_bytes),
      read_(std::move(read)),
      thread_([this, first](std::stop_token stop) { run(stop, first); }) {}

void Loader::next(Batch& batch) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !ready_.empty() || error_; });
  if (ready_.empty()) std::rethrow_exception(error_);
  std::swap(batch, ready_.front());
  spare_.push_back(std::move(ready_.front()));
  ready_.pop_front();
  changed_.notify_all();
}

void Loader::run(std::stop_token stop, int64_t step) try {
  for (; step <= schedule_.total; ++step) {
    Batch batch;
    {
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [&] { return ready_.size() < kAhead; })) return;
      if (!spare_.empty()) {
        batch = std::move(spare_.back());
        spare_.pop_back();
      }
    }
    fill(batch, step);
    std::lock_guard lock(mutex_);
    ready_.push_back(std::move(batch));
    changed_.notify_all();
  }
  throw Error(concat("no batch after step ", schedule_.total));
} catch (...) {
  std::lock_guard lock(mutex_);
  error_ = std::current_exception();
  changed_.notify_all();
}

void Loader::fill(Batch& batch, int64_t step) {
  const int64_t epoch = schedule_.epoch_of(step);
  if (epoch != order_epoch_) {
    order_ = shuffled(schedule_.images, seed_, uint32_t(epoch));
    order_epoch_ = epoch;
  }
  const auto first = order_.begin() + schedule_.first_of(step);
  batch.epoch = uint32_t(epoch);
  batch.samples.assign(first, first + schedule_.size_of(step));
  batch.images.resize(batch.samples.size() * image_bytes_);
  for (size_t i = 0; i < batch.samples.size(); ++i)
    read_(batch.samples[i], batch.images.data() + i * image_bytes_);
}

}  // namespace tessera
