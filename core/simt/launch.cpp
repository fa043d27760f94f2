#include "core/simt/launch.h"

#include <omp.h>

#include <algorithm>
#include <mutex>
#include <numeric>

#include "core/simt/crash.h"
#include "core/simt/runner.h"
#include "core/simt/stream.h"
#include "core/simt/trace.h"

namespace tessera::simt {
namespace {

// Which blocks of a grid run, in their order.
std::vector<uint64_t> block_order(const Grid& grid) {
  const uint64_t total = grid.grid.count(), sampled = grid.options.sampled_blocks;
  if (sampled && sampled < total) {
    std::vector<uint64_t> order(sampled);
    uint64_t state = grid.options.seed;
    for (uint64_t i = 0; i < sampled; ++i) {
      const uint64_t begin = i * total / sampled, end = (i + 1) * total / sampled;
      order[i] = begin + next_random(state) % (end - begin);
    }
    return order;
  }
  const uint64_t first = grid.options.first_block == Options::kFromTheEnd
                             ? total - std::min(grid.options.blocks, total)
                             : std::min(grid.options.first_block, total);
  const uint64_t count = std::min(grid.options.blocks, total - first);
  std::vector<uint64_t> order(count);
  std::iota(order.begin(), order.end(), first);
  if (grid.options.order == Order::Descending) std::reverse(order.begin(), order.end());
  if (grid.options.order == Order::Random) {
    uint64_t state = grid.options.seed + 12345;
    for (size_t i = count; i-- > 1;) std::swap(order[i], order[next_random(state) % (i + 1)]);
  }
  return order;
}

// The first and the last blocks of a grid.
std::vector<uint64_t> ends_of(const Grid& grid) {
  const uint64_t total = grid.grid.count(), count = std::min<uint64_t>(4, total);
  std::vector<uint64_t> order;
  for (uint64_t i = 0; i < count; ++i) {
    order.push_back(i);
    order.push_back(total - 1 - i);
  }
  return order;
}

void run_blocks(const Grid& grid, const std::vector<uint64_t>& order) {
  const int limit = kThreadSanitizer || watch ? 1
                    : grid.options.workers    ? grid.options.workers
                                              : omp_get_num_procs();
  const int workers = int(std::min<uint64_t>(uint64_t(limit), order.size()));
  std::atomic<size_t> next = 0;
  std::mutex mutex;
  std::exception_ptr error;
  const auto work = [&] {
    const CrashStack stack;
    thread_local Block& block = *new Block;  // streams may be destroyed after thread_locals
    for (size_t i; (i = next++) < order.size();) try {
        block.run(grid, order[i]);
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
        next = order.size();
      }
  };
  if (workers <= 1) {
    work();
  } else {
#pragma omp parallel num_threads(workers)
    work();
  }
  if (error) std::rethrow_exception(error);
}

// All blocks live at once, and take turns when none of their threads can go on.
class CooperativeRun {
 public:
  CooperativeRun(const Grid& grid, const std::vector<uint64_t>& order) : grid_(grid) {
    for (uint64_t index : order) {
      blocks_.push_back(std::make_unique<Block>());
      blocks_.back()->start(grid, index);
      alive_.push_back(blocks_.back().get());
    }
  }
  ~CooperativeRun() {
    for (Block* block : alive_) block->cancel();
  }

  void run() {
    constexpr int kRounds = 1000;
    uint64_t state = grid_.options.seed;
    for (int rounds = 0; !alive_.empty();) {
      if (grid_.options.order == Order::Random)
        for (size_t i = alive_.size(); i-- > 1;)
          std::swap(alive_[i], alive_[next_random(state) % (i + 1)]);
      rounds = advance() || leave_barrier() ? 0 : rounds + 1;
      if (rounds > (any_polls() ? kRounds : 0)) alive_.front()->report_deadlock();
    }
  }

 private:
  bool advance() {
    bool something = false;
    const std::vector<Block*> blocks = alive_;
    for (Block* block : blocks) {
      const uint64_t events = block->events();
      if (block->advance()) std::erase(alive_, block);
      something |= block->events() != events;
    }
    return something;
  }
  bool leave_barrier() {
    RunningGrid& running = *grid_.running;
    if (running.synced < blocks_.size() * grid_.block.count()) return false;
    running.synced = 0;
    for (Block* block : alive_) block->leave_grid_barrier();
    running.sync.renew();
    return true;
  }
  bool any_polls() const {
    return std::any_of(alive_.begin(), alive_.end(), [](Block* block) { return block->polls(); });
  }

  const Grid& grid_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Block*> alive_;
};

// `launched` is not on the host's stack: ThreadSanitizer would see kernels read what lay there.
void run_grid(std::unique_ptr<Grid> launched, bool cooperative) {
  Grid& grid = *launched;
  static std::atomic<uint64_t> launches = 0;
  RunningGrid running;
  running.number = ++launches;
  running.begin.release();
  running.cooperative = cooperative;
  grid.running = &running;
  if (watch && *watch->address != watch->value)
    watch->value = *watch->address, watch->writer = "a copy or memset";
  const CrashReport report;
  struct End {  // also by a fault
    const SyncPoint& point;
    ~End() { point.acquire(); }
  } const end{running.end};
  const std::vector<uint64_t> order = block_order(grid);
  if (cooperative) {
    const CrashStack stack;
    CooperativeRun(grid, order).run();
  } else {
    run_blocks(grid, order);
  }
  if (LaunchTrace* const trace = LaunchTrace::current()) {
    trace->note(grid, order.size());
    // Where tensors begin and end is seen there.
    if (!cooperative && grid.options.sampled_blocks) run_blocks(grid, ends_of(grid));
    trace->note(grid, 0);
  }
}

// CUDA C++ Programming Guide, "Occupancy Calculator", but for registers, which the host has not:
// each block takes 1 KB of shared memory more than it asks for from sm_80 on.
uint64_t resident_blocks(const Launch& launch, const Profile& profile) {
  const size_t threads = (launch.block.count() + 31) / 32 * 32;
  const size_t shared = launch.shared_bytes + (profile.capability >= 80 ? 1024 : 0);
  uint64_t blocks = std::min<uint64_t>(uint64_t(profile.blocks_per_multiprocessor),
                                       uint64_t(profile.threads_per_multiprocessor) / threads);
  if (shared) blocks = std::min(blocks, uint64_t{profile.shared_per_multiprocessor / shared});
  return blocks * uint64_t(profile.multiprocessors);
}

}  // namespace

void enqueue_grid(const Launch& launch, const char* kernel, void (*body)(const void*),
                  std::shared_ptr<void> arguments) {
  const Profile& profile = options().profile;
  const size_t threads = launch.block.count();
  const auto check = [&](bool fine, const auto&... why) {
    if (!fine) throw Error(concat("launch of ", short_name(kernel), ' ', why...));
  };
  check(launch.stream, "without a stream");
  check(threads >= 1 && threads <= 1024 && launch.block.z <= 64, "with ", threads,
        " threads a block");
  check(launch.grid.count() >= 1 && launch.grid.x <= 0x7FFFFFFF && launch.grid.y <= 65535 &&
            launch.grid.z <= 65535,
        "with a grid of ", launch.grid.x, "x", launch.grid.y, "x", launch.grid.z);
  check(launch.shared_bytes <= profile.shared_per_block, "with ", launch.shared_bytes,
        " bytes of shared memory, sm_", profile.capability, " has at most ",
        profile.shared_per_block);
  check(!launch.cooperative || launch.grid.count() <= resident_blocks(launch, profile),
        "as cooperative with ", launch.grid.count(), " blocks, sm_", profile.capability,
        " holds at most ", resident_blocks(launch, profile), " of them at once");
  // The work owns the arguments: a graph runs it many times.
  issue(launch.stream, [=, arguments = std::move(arguments)](const Options& at_launch) {
    run_grid(std::make_unique<Grid>(Grid{kernel, launch.grid, launch.block, launch.shared_bytes,
                                         launch.overlaps, at_launch, body, arguments.get()}),
             launch.cooperative);
  });
}

}  // namespace tessera::simt
