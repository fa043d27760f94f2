// Where tensors lie whose lives are known beforehand: all in one block, and those that are never in
// use at once in the same bytes of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace tessera {

// A request for memory, in use from `birth` until before `death`. Times are whatever makes lives
// overlap that may be in use at once: the order of calls. Work beside a stream (core/branch.h)
// keeps its memory until the stream has waited for it.
struct Life {
  size_t bytes;
  int64_t birth, death;
};

struct MemoryPlan {
  static constexpr size_t kAlignment = 256;
  std::vector<size_t> offsets;  // of each life in the block, multiples of kAlignment
  size_t bytes = 0;             // of the block
};

// The smallest block that some greedy orders find. Same lives, same plan.
MemoryPlan plan_memory(std::span<const Life> lives);

// The most bytes in use at any time: no plan has less.
size_t live_peak(std::span<const Life> lives);

}  // namespace tessera
