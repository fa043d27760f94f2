// What the launches of a scope do, counted on the way: for tests and for predictions. One trace at
// a time in a process.
//
// Bank conflicts of ldmatrix and stmatrix: shared memory has 8 groups of 4 banks of 4 bytes, and a
// pass moves one 16-byte row of each. A matrix of 8 rows takes one pass when its rows are in 8
// different groups, and more when two different rows are in one.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "core/simt/block.h"

namespace tessera::simt {

enum Counter {
  kMatrices,      // of ldmatrix and stmatrix
  kPasses,        // that these take
  kCopied,        // bytes that cp.async reads
  kFilled,        // and that it writes to shared memory
  kLoaded,        // bytes of global memory: vectors and __ldg; plain C++ accesses are not seen
  kStored,        // the same
  kVectorLoads,   // loads of these with 8 bytes or more
  kVectorStores,  // and stores
  kProducts,      // mma instructions
  kMultiplyAdds,  // of these
  kCounters
};

struct LaunchRecord {
  std::string kernel;  // "tessera::simt::sum_rows_kernel<float>"
  dim3 grid, block;
  size_t shared_bytes;
  uint64_t ran;  // blocks, which is less than there are where Options leave some out
  std::array<uint64_t, kCounters> counted;
  // Bytes of each allocation from the first to the last that was seen to be read, and written: what
  // has to move at least, if all between is used.
  uint64_t read, written;
  // Of the whole grid, when those that ran are like the others.
  double total(Counter counter) const {
    return ran ? double(counted[counter]) * double(grid.count()) / double(ran) : 0;
  }
};

class LaunchTrace {
 public:
  LaunchTrace() { current().store(this); }
  ~LaunchTrace() { current().store(nullptr); }
  LaunchTrace(const LaunchTrace&) = delete;
  LaunchTrace& operator=(const LaunchTrace&) = delete;

  // The one of this scope, or null.
  static std::atomic<LaunchTrace*>& current() {
    static constinit std::atomic<LaunchTrace*> trace = nullptr;
    return trace;
  }

  std::vector<LaunchRecord> launches;

  void add(Counter counter, uint64_t count) {
    counters_[counter].fetch_add(count, std::memory_order_relaxed);
  }
  // An access of global memory by cp.async (kCopied) or a vector.
  void add_access(Counter counter, const void* pointer, size_t bytes);
  // When the launch's counted blocks have run; `ran`: their number.
  void begin_record(const Grid& grid, uint64_t ran);
  // After all of it that run: what these touched goes to the record, too.
  void end_record();

 private:
  struct Extent {
    bool written;
    uintptr_t begin, end;   // of the allocation
    uintptr_t first, last;  // first byte and behind the last
  };
  std::array<std::atomic<uint64_t>, kCounters> counters_ = {};
  std::mutex mutex_;
  std::vector<Extent> extents_;
};

inline void count(Counter counter, uint64_t count) {
  if (LaunchTrace* const trace = LaunchTrace::current().load(std::memory_order_relaxed))
    trace->add(counter, count);
}
// The same of an access, which counts when it is one of global memory.
inline void count_access(Counter counter, const void* pointer, size_t bytes) {
  LaunchTrace* const trace = LaunchTrace::current().load(std::memory_order_relaxed);
  if (trace && current_thread && !is_shared(pointer, bytes)) [[unlikely]]
    trace->add_access(counter, pointer, bytes);
}

// row(i), i = 0 .. 7: the address of a matrix's row.
template <class Row>
int passes_of_matrix(const Row& row) {
  int rows_of_group[8] = {}, passes = 0;
  for (int i = 0; i < 8; ++i) {
    const auto address = reinterpret_cast<uintptr_t>(row(i));
    bool seen = false;  // a row that is asked for twice is read once
    for (int j = 0; j < i; ++j) seen |= address == reinterpret_cast<uintptr_t>(row(j));
    if (!seen) passes = std::max(passes, ++rows_of_group[address / 16 % 8]);
  }
  return passes;
}

}  // namespace tessera::simt
