// A thread block on the host: every CUDA thread is a fiber, and all threads of a block take turns
// on one host thread. A thread runs until it waits (for a barrier, for the other lanes of its warp)
// or ends. Faults are errors that name kernel, block and thread.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <vector>

#include "core/check.h"
#include "core/simt/options.h"
#include "core/simt/sanitizer.h"
#include "core/simt/types.h"

namespace tessera::simt {

class Block;
class Fiber;
struct Cluster;
struct RunningGrid;

// A line of the sources: as a default argument, the caller's. clang 14 has no std::source_location.
struct Where {
  const char* file = "";
  int line = 0;
  static constexpr Where current(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// A broken rule of CUDA's: the message says which, and names kernel, block and thread.
class Fault : public Error {
 public:
  using Error::Error;
};

// What a thread has in flight of one family of asynchronous instructions (kernels/cuda/ptx).
// Dropped when the thread ends.
class InFlight {
 public:
  virtual ~InFlight() = default;
  // The thread is about to wait, and operations take place at any moment (Landing::Random).
  virtual void suspended() = 0;
  // The thread ends: throws Fault where operations are left that it has not waited for, which could
  // land on what takes the place of their target.
  virtual void ended() = 0;
};

// One CUDA thread.
struct Thread {
  uint3 thread_idx{};
  unsigned linear = 0;  // in the block
  Block* block = nullptr;
  const char* waits_for = nullptr;  // while suspended: "__syncthreads"
  Where where;                      // and at which line
  bool done = false;
  Fiber* fiber = nullptr;                            // that runs it, or null before its start
  int barrier_result = 0;                            // of the barrier that it waited for
  unsigned proxy_fences = 0;                         // how many it has executed
  bool begun = false;                                // waited for the kernel before
  std::vector<std::shared_ptr<InFlight>> in_flight;  // one of each family in use

  unsigned lane() const { return linear % 32; }
  unsigned warp() const { return linear / 32; }
};

// What a launch is; the same for all of its blocks.
struct Grid {
  const char* kernel;  // name, for messages
  dim3 grid, block;
  size_t shared_bytes = 0;
  unsigned cluster = 0;  // blocks of one, or 0: no clusters
  bool overlaps = false;
  Options options;
  void (*body)(const void* arguments) = nullptr;  // runs the current thread
  const void* arguments = nullptr;
  RunningGrid* running = nullptr;  // what its blocks share while they run
};

extern constinit thread_local Thread* current_thread;

// The thread that runs now. Only inside of kernels.
inline Thread& self() { return *current_thread; }

// What the current thread has in flight of family F, derived from InFlight.
template <class F>
F& in_flight() {
  const Unwatched own;  // the next block's thread has the same place
  static_assert(std::is_final_v<F>);
  auto& all = self().in_flight;
  for (const auto& one : all) {
    InFlight& family = *one;
    if (typeid(family) == typeid(F)) return static_cast<F&>(family);
  }
  all.push_back(std::make_shared<F>());
  return static_cast<F&>(*all.back());
}

// Throws Fault for the current thread.
[[noreturn]] void fault(const std::string& message, Where where = Where::current());
// "kernel k, block (0,0,0), thread (1,0,0)" of the current thread, "" outside of kernels.
std::string current_place();
// For InFlight::ended().
void expect_none_left(size_t operations, const char* name);
// Throws unless the profile has at least this compute capability.
void require(int capability, const char* instruction, Where where = Where::current());
const Grid& current_grid();
uint3 current_block_idx();
// A number that depends on the launch's seed, block, thread and how often it was asked for.
uint32_t random_choice();

// Lets other threads run: for loops that poll. The current thread goes on later. When all threads
// that are left wait or poll, and do so for long, that is a fault.
void yield_thread(const char* waits_for, Where where = Where::current());
// What threads may poll for has changed.
void note_progress();
// Where the order of threads may show (atomics): other threads may run first.
void preemption_point(Where where);

// Waits until `count` threads of the block (0: all, which must come from the same line) have come
// to barrier `id`, 0 to 15. Returns how many came with a predicate that is not zero.
int block_barrier(int id, int count, int predicate, const char* name, Where where);
// Comes to the barrier and does not wait (bar.arrive); `count` must be given.
void block_arrive(int id, int count, const char* name, Where where);

// Waits for all threads of the block's cluster.
void cluster_sync(Where where = Where::current());

// The lanes of `mask` meet. Each brings a pointer to its operands; the last to come calls
// combine(lanes), with null where a lane is not in the mask, and all go on. Results are written
// into the operands. Combining meets nobody and waits for nobody.
using Combine = void (*)(void* const* lanes);
void warp_rendezvous(unsigned mask, void* operands, Combine combine, const char* name, Where where);

// The warps of a warpgroup execute the same instructions of it: the `number`th of the current one's
// is `what`, by one thread of each, and none comes after kEnd, with which all end. Throws Fault
// otherwise.
inline constexpr uint64_t kEnd = 0;
void in_step(size_t number, uint64_t what, const char* name, Where where);

// For ThreadSanitizer, around memory orders that it does not know: what the current thread did
// before order_release(p) comes before what a thread does after its later order_acquire(p).
void order_release(const void* place);
void order_acquire(const void* place);

// The block's dynamic shared memory. Throws unless the launch asked for `bytes` at least.
void* shared_bytes(size_t bytes, size_t alignment, Where where);
// Whether all of `bytes` at `pointer` are in the block's shared memory.
bool is_shared(const void* pointer, size_t bytes);
// wgmma sees what a thread has copied to shared memory after a fence of that thread: notes a copy
// of the current thread, and its fence; the thread that copied to the 16 bytes at `pointer` last
// when it has not come to a fence since, or null.
void note_copied(const void* pointer, size_t bytes);
void fence_copies();
const Thread* unfenced_copy(const void* pointer);
// The current thread has waited for the kernel before its own.
void note_begun();
// Writes what memory holds that was never written: 0x7FBF repeated, a signalling NaN as float and
// as bf16, and a wild index.
void fill_undefined(void* memory, size_t bytes);

}  // namespace tessera::simt

#define threadIdx (::tessera::simt::self().thread_idx)
#define blockIdx (::tessera::simt::current_block_idx())
#define blockDim (::tessera::simt::current_grid().block)
#define gridDim (::tessera::simt::current_grid().grid)
