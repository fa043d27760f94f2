// What the host model's runtime is made of: streams of queued work, events, captures, memory.
// Everything here is under the lock of Machine.
#pragma once

#include <chrono>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "core/simt/runtime.h"
#include "core/simt/sanitizer.h"

namespace tessera::simt {

using Run = std::function<void(const Options&)>;

// A point in a stream's order that others can wait for.
struct Mark {
  bool done = false;
  std::chrono::steady_clock::time_point time;
  StreamState* stream = nullptr;  // until done
  SyncPoint sync;
};

struct Work {
  Run run;  // may be empty
  Options options;
  std::shared_ptr<Mark> after, completes;  // or null
  SyncPoint issued;
};

struct Node {
  Run run;
  std::vector<int> after;  // nodes that come first
};

// A capture under way, shared by the streams that take part.
struct Capture {
  StreamState* origin = nullptr;
  std::thread::id thread;  // that began it
  bool local = false;      // what other threads do does not spoil it
  bool is_callers() const { return thread == std::this_thread::get_id(); }
  bool spoilt = false;
  std::vector<Node> nodes;
};

struct StreamState {
  int number = 0;
  std::deque<Work> work;
  Timeline timeline;
  SyncPoint done;  // what has run
  std::shared_ptr<Capture> capture;
  std::vector<int> last;   // while it captures: the nodes that its next one comes after
  bool destroyed = false;  // by the program: goes when its work is done
};

struct EventState {
  bool timing = true;
  std::shared_ptr<Mark> mark;        // null: never recorded
  std::shared_ptr<Capture> capture;  // recorded there
  std::vector<int> nodes;            // and after these
};

struct GraphState {
  std::vector<Node> nodes;
};
struct GraphExecState {
  std::shared_ptr<const std::vector<Node>> nodes;
};

enum class Place { Pageable, Pinned, Device, Invalid };

class Machine {
 public:
  static Machine& get();
  ~Machine();

  std::recursive_mutex mutex;
  std::vector<StreamState*> streams;  // by number; also destroyed ones that have work left
  std::vector<EventState*> events;
  std::vector<GraphState*> graphs;
  std::vector<GraphExecState*> execs;

  void add_stream(StreamState* stream);
  void destroy(StreamState& stream);
  // Whether the program may name it.
  bool known(const StreamState* stream) const;
  // Queues work, and does some as options().landing has it.
  void push(StreamState& stream, Work work);
  // These throw what went wrong, now or since the last time that somebody waited.
  void finish(StreamState& stream);
  void finish(const std::shared_ptr<Mark>& mark);
  void finish_all();
  // Does one piece of work of those that can be done.
  bool step(StreamState* wanted);
  // Calls f; what goes wrong there is told to whoever waits next.
  template <class F>
  void quietly(F&& f) {
    try {
      f();
    } catch (...) {
      if (!lost_) lost_ = std::current_exception();
    }
  }
  void throw_lost();
  // Whether there is a capture during which the calling thread may not wait or allocate, or nobody
  // may (wait for the device); spoils it.
  bool refuses_in_capture(bool to_all = false);

  // Where [p, p + bytes) is; Invalid when it leaves the allocation in which it begins or ends.
  Place place_of(const void* p, size_t bytes) const;
  struct Allocation {
    size_t bytes;
    bool device;
    bool reserved;  // address space alone, by mmap
    void* base;     // with the redzone before it
  };
  std::map<uintptr_t, Allocation> memory;
  MemoryUse use;

 private:
  StreamState* choose(StreamState* wanted);
  void run(StreamState& stream);
  void sweep();
  uint64_t random();
  void drop_everything();

  std::exception_ptr lost_;
  SyncPoint departed_;  // what streams did that are gone
  uint64_t seed_ = 0, random_state_ = 0;
};

// Queues a piece of work that others do not wait for, or adds it to the stream's capture.
void issue(cudaStream_t stream, Run run);
// Runs a graph's nodes.
void replay(const std::vector<Node>& nodes, const Options& options);
// Remembers the error for cudaGetLastError.
cudaError_t result(cudaError_t error);
// Inside of a function of cudaLaunchHostFunc.
extern thread_local bool in_host_function;

}  // namespace tessera::simt
