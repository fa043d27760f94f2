#include "core/memory_plan.h"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>

namespace tessera {
namespace {

size_t aligned(size_t bytes) {
  return (std::max<size_t>(bytes, 1) + MemoryPlan::kAlignment - 1) / MemoryPlan::kAlignment *
         MemoryPlan::kAlignment;
}

bool meet(const Life& a, const Life& b) { return a.birth < b.death && b.birth < a.death; }

// Each life in turn goes to the lowest place that those before it leave free while it lasts.
MemoryPlan first_fit(std::span<const Life> lives, const std::vector<size_t>& order) {
  MemoryPlan plan{std::vector<size_t>(lives.size()), 0};
  std::vector<size_t> placed;  // by offset
  for (const size_t i : order) {
    const size_t bytes = aligned(lives[i].bytes);
    size_t offset = 0;
    for (const size_t other : placed) {
      if (!meet(lives[i], lives[other])) continue;
      if (plan.offsets[other] >= offset + bytes) break;
      offset = std::max(offset, plan.offsets[other] + aligned(lives[other].bytes));
    }
    plan.offsets[i] = offset;
    plan.bytes = std::max(plan.bytes, offset + bytes);
    const auto place = std::ranges::upper_bound(placed, offset, {},
                                                [&](size_t other) { return plan.offsets[other]; });
    placed.insert(place, i);
  }
  return plan;
}

}  // namespace

MemoryPlan plan_memory(std::span<const Life> lives) {
  std::vector<size_t> order(lives.size());
  std::iota(order.begin(), order.end(), size_t{0});
  // As they come; the longest first, whose ends are then the floor of what comes and goes; the
  // largest first.
  MemoryPlan best = first_fit(lives, order);
  const auto try_by = [&](auto key) {
    std::ranges::stable_sort(order, std::greater<>(), [&](size_t i) { return key(lives[i]); });
    MemoryPlan plan = first_fit(lives, order);
    if (plan.bytes < best.bytes) best = std::move(plan);
  };
  try_by([](const Life& life) { return uint64_t(life.death) - uint64_t(life.birth); });
  try_by([](const Life& life) { return life.bytes; });
  return best;
}

size_t live_peak(std::span<const Life> lives) {
  std::map<int64_t, int64_t> change;  // of the bytes in use, by time
  for (const Life& life : lives)
    if (life.birth < life.death) {
      change[life.birth] += int64_t(life.bytes);
      change[life.death] -= int64_t(life.bytes);
    }
  int64_t now = 0, peak = 0;
  for (const auto& [time, bytes] : change) peak = std::max(peak, now += bytes);
  return size_t(peak);
}

}  // namespace tessera
