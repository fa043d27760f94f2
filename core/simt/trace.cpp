#include "core/simt/trace.h"

#include "core/simt/runner.h"
#include "core/simt/stream.h"

namespace tessera::simt {

void LaunchTrace::add_access(Counter counter, const void* pointer, size_t bytes) {
  add(counter, bytes);
  const bool written = counter == kStored;
  if (bytes >= 8 && counter != kCopied) add(written ? kVectorStores : kVectorLoads, 1);
  const auto at = reinterpret_cast<uintptr_t>(pointer);
  std::lock_guard lock(mutex_);
  for (Extent& extent : extents_)
    if (extent.written == written && extent.begin <= at && at < extent.end) {
      extent.first = std::min(extent.first, at);
      extent.last = std::max(extent.last, at + bytes);
      return;
    }
  // Nobody allocates while a grid runs.
  const auto& memory = Machine::get().memory;
  const auto next = memory.upper_bound(at);
  if (next == memory.begin()) return;  // not of the device
  const auto& [begin, allocation] = *std::prev(next);
  if (at < begin + allocation.bytes)
    extents_.push_back({written, begin, begin + allocation.bytes, at, at + bytes});
}

void LaunchTrace::begin_record(const Grid& grid, uint64_t ran) {
  LaunchRecord record{
      short_name(grid.kernel), grid.grid, grid.block, grid.shared_bytes, ran, {}, 0, 0};
  for (size_t i = 0; i < kCounters; ++i) record.counted[i] = counters_[i].exchange(0);
  launches.push_back(std::move(record));
}

void LaunchTrace::end_record() {
  LaunchRecord& record = launches.back();
  for (const Extent& extent : extents_)
    (extent.written ? record.written : record.read) += extent.last - extent.first;
  extents_.clear();
  for (auto& counter : counters_) counter = 0;
}

}  // namespace tessera::simt
