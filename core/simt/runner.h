// The scheduler of one block: which of its threads runs next, on which fiber.
#pragma once

#include <atomic>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <vector>

#include "core/simt/block.h"
#include "core/simt/fiber.h"

namespace tessera::simt {

// What the blocks of a launch share while it runs.
struct RunningGrid {
  uint64_t number = 0;         // of the launch
  std::atomic<int> live = 0;   // blocks that run now, on several host threads
  std::atomic<int> stuck = 0;  // of them: no thread does more than wait and poll
  SyncPoint begin;             // what the stream did before, for the threads
  SyncPoint end;               // and what these did, for the stream
};

// What the blocks of a cluster share while they live.
struct Cluster {
  uint64_t synced = 0;  // threads that came to its barrier
  Where where;          // and at which line
  SyncPoint sync;       // of the barrier
};

// A byte whose last writer is sought: every thread is checked where it gives up its turn.
struct Watch {
  const unsigned char* address = nullptr;
  unsigned char value = 0;
  std::string writer;
};
extern Watch* watch;  // or null; with one host worker only

// splitmix64 (Steele, Lea, Flood 2014).
inline uint64_t next_random(uint64_t& state) {
  uint64_t z = state += 0x9E3779B97F4A7C15;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return z ^ z >> 31;
}

class Block {
 public:
  // Runs one block to its end. Throws Fault, or what a thread threw.
  void run(const Grid& grid, uint64_t index);

  // The same in steps, for blocks that live side by side.
  void start(const Grid& grid, uint64_t index, Cluster* cluster = nullptr);
  // Until all threads have ended, which gives true, or all that are left wait or poll.
  bool advance();
  bool polls() const { return !ready_.empty(); }  // rather than waits, where advance() gave false
  uint64_t events() const { return events_; }     // grows when threads get on
  void leave_cluster_barrier();
  [[noreturn]] void report_deadlock();
  // Unwinds the threads that wait.
  void cancel();

  // Of the running thread.
  void suspend(const char* waits_for, Where where);
  void make_ready(Thread& thread) { ready_.push_back(&thread); }
  void poll(const char* waits_for, Where where);
  void preempt(Where where);
  int barrier(int id, int count, int predicate, bool wait, const char* name, Where where);
  void cluster_barrier(Where where);
  void in_step(size_t number, uint64_t what, const char* name, Where where);
  void meet(unsigned mask, void* operands, Combine combine, const char* name, Where where);
  void* shared(size_t bytes, size_t alignment, Where where);
  bool is_shared(const void* pointer, size_t bytes) const;
  void note_copied(const void* pointer, size_t bytes);
  const Thread* unfenced_copy(const void* pointer) const;
  uint32_t random();
  void happened() { polls_ = 0, ++events_; }

  const Grid& grid() const { return *grid_; }
  uint3 index() const { return index_; }

 private:
  struct Cancelled {};  // unwinds a thread
  struct FiberOf {
    Block* block;
    std::unique_ptr<Fiber> fiber;  // or null, before its start
  };
  struct Barrier {
    std::vector<Thread*> waiting;
    int arrived = 0, expected = 0, sum = 0;
    int came[32] = {};  // of each warp of which not all came
    const char* name = nullptr;
    const Thread* first = nullptr;
    Where where;
    SyncPoint sync;
  };
  // Lanes of a warp on their way to one rendezvous.
  struct Meeting {
    unsigned mask = 0, arrived = 0;
    void* lanes[32] = {};
    Combine combine = nullptr;
    const char* name = nullptr;
    Where where;
    SyncPoint sync;
  };

  void start_fiber();
  void reuse_spent();
  void set_timeline(Fiber& fiber, const Thread& thread) const;
  void resume(Thread& thread);
  void run_fiber(FiberOf& mine);
  void run_thread(Thread& thread);
  Thread* next_unstarted();
  void choose_next();
  void check_arithmetic(const char* before) const;
  void note_write(const char* before) const;
  void check_barrier(const Barrier& barrier, int id, int count, const char* name,
                     Where where) const;
  void add_arrival(Barrier& barrier) const;
  void check_steps() const;
  int threads_of(unsigned warp) const;
  unsigned lanes_of(unsigned warp) const;
  bool random_order() const { return grid_->options.order == Order::Random; }

  const Grid* grid_ = nullptr;
  Cluster* cluster_ = nullptr;
  uint3 index_{};
  std::vector<Thread> threads_;
  std::vector<unsigned> order_;  // in which threads start
  size_t started_ = 0, done_ = 0;
  std::deque<Thread*> ready_;
  Thread* next_ = nullptr;  // to go on, chosen by the one that stopped; null: none of ready_
  size_t polls_ = 0;        // since something else happened
  uint64_t events_ = 0;     // that are not polls
  std::vector<std::unique_ptr<FiberOf>> fibers_;
  std::vector<FiberOf*> idle_;
  // With ThreadSanitizer: ran a thread of this launch, whose other threads must not seem to be it.
  std::vector<FiberOf*> spent_;
  uint64_t spent_on_ = 0;                             // number of the timeline that launched it
  std::map<uint64_t, std::vector<FiberOf*>> parked_;  // of other timelines
  uint64_t spent_by_ = 0;                             // and of the launch
  std::exception_ptr error_;
  bool cancelled_ = false;
  Barrier barriers_[16];
  std::vector<Thread*> cluster_waiting_;
  std::vector<std::vector<Meeting>> meetings_;  // by warp
  struct Steps {
    std::vector<uint64_t> done;  // by the warp of the group that is ahead
    int ended = 0;               // warps
  };
  std::vector<Steps> steps_;  // by warpgroup
  struct FreeArena {
    void operator()(std::byte* memory) const;
  };
  void make_arena();
  std::unique_ptr<std::byte, FreeArena> arena_;
  size_t arena_bytes_ = 0;
  std::byte* shared_ = nullptr;  // in the arena
  struct Copied {
    unsigned thread = 0;  // its number + 1, or 0
    unsigned fences = 0;  // that it had executed then
  };
  std::vector<Copied> copied_;  // last, to 16 bytes of shared memory each
  uint64_t random_state_ = 0;
};

// One line of one file, as far as a Where tells.
inline bool same_place(const Where& a, const Where& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}
// "file.cu:12"
std::string line_of(const Where& where);

// "conv2d_kernel<float>" of a launcher's __PRETTY_FUNCTION__.
std::string short_name(const char* pretty);

}  // namespace tessera::simt
