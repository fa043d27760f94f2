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

// Blocks that live at once: those of a cluster, or one.
uint64_t side_by_side(const Grid& grid) { return std::max(grid.cluster, 1u); }

// Which clusters of a grid run (blocks, where there are none), in their order.
std::vector<uint64_t> cluster_order(const Grid& grid) {
  const uint64_t size = side_by_side(grid), total = grid.grid.count() / size;
  const auto clusters = [&](uint64_t blocks) {
    return std::min(blocks / size + (blocks % size != 0), total);
  };
  const uint64_t sampled = clusters(grid.options.sampled_blocks);
  if (sampled && sampled < total) {
    std::vector<uint64_t> order(sampled);
    uint64_t state = grid.options.seed;
    for (uint64_t i = 0; i < sampled; ++i) {
      const uint64_t begin = i * total / sampled, end = (i + 1) * total / sampled;
      order[i] = begin + next_random(state) % (end - begin);
    }
    return order;
  }
  const uint64_t asked = clusters(grid.options.blocks);
  const uint64_t first = grid.options.first_block == Options::kFromTheEnd
                             ? total - asked
                             : std::min(grid.options.first_block / size, total);
  std::vector<uint64_t> order(std::min(asked, total - first));
  std::iota(order.begin(), order.end(), first);
  if (grid.options.order == Order::Descending) std::reverse(order.begin(), order.end());
  if (grid.options.order == Order::Random) {
    uint64_t state = grid.options.seed + 12345;
    for (size_t i = order.size(); i-- > 1;)
      std::swap(order[i], order[next_random(state) % (i + 1)]);
  }
  return order;
}

// The first and the last clusters of a grid.
std::vector<uint64_t> ends_of(const Grid& grid) {
  const uint64_t total = grid.grid.count() / side_by_side(grid);
  const uint64_t count = std::min<uint64_t>(4, total);
  std::vector<uint64_t> order;
  for (uint64_t i = 0; i < count; ++i) {
    order.push_back(i);
    order.push_back(total - 1 - i);
  }
  return order;
}

// The blocks of a cluster live at once, and take turns when none of their threads can go on.
class ClusterRun {
 public:
  // `blocks` may have run others before.
  ClusterRun(const Grid& grid, uint64_t number, std::vector<std::unique_ptr<Block>>& blocks)
      : grid_(grid) {
    while (blocks.size() < grid.cluster) blocks.push_back(std::make_unique<Block>());
    for (uint64_t i = 0; i < grid.cluster; ++i) {
      blocks[i]->start(grid, number * grid.cluster + i, &cluster_);
      alive_.push_back(blocks[i].get());
    }
  }
  ~ClusterRun() {
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
    if (cluster_.synced < grid_.cluster * grid_.block.count()) return false;
    cluster_.synced = 0;
    for (Block* block : alive_) block->leave_cluster_barrier();
    cluster_.sync.renew();
    return true;
  }
  bool any_polls() const {
    return std::any_of(alive_.begin(), alive_.end(), [](Block* block) { return block->polls(); });
  }

  const Grid& grid_;
  Cluster cluster_;
  std::vector<Block*> alive_;
};

// Threads of the host that run blocks. Each thread of these has a stack, which takes two of the
// 65530 mappings that Linux gives a process, and keeps it for later blocks.
int workers_for(const Grid& grid) {
  if (kThreadSanitizer || watch) return 1;
  if (grid.options.workers) return grid.options.workers;
  constexpr uint64_t kStacks = 12000;
  const uint64_t most = std::max<uint64_t>(1, kStacks / (side_by_side(grid) * grid.block.count()));
  return int(std::min(uint64_t(omp_get_num_procs()), most));
}

void run_clusters(const Grid& grid, const std::vector<uint64_t>& order) {
  const int workers = int(std::min<uint64_t>(uint64_t(workers_for(grid)), order.size()));
  std::atomic<size_t> next = 0;
  std::mutex mutex;
  std::exception_ptr error;
  const auto work = [&] {
    const CrashStack stack;
    // Streams may be destroyed after thread_locals.
    thread_local Block& block = *new Block;
    thread_local auto& blocks = *new std::vector<std::unique_ptr<Block>>;
    for (size_t i; (i = next++) < order.size();) try {
        grid.cluster ? ClusterRun(grid, order[i], blocks).run() : block.run(grid, order[i]);
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

// `launched` is not on the host's stack: ThreadSanitizer would see kernels read what lay there.
void run_grid(std::unique_ptr<Grid> launched) {
  Grid& grid = *launched;
  static std::atomic<uint64_t> launches = 0;
  RunningGrid running;
  running.number = ++launches;
  running.begin.release();
  grid.running = &running;
  if (watch && *watch->address != watch->value)
    watch->value = *watch->address, watch->writer = "a copy or memset";
  const CrashReport report;
  struct End {  // also by a fault
    const SyncPoint& point;
    ~End() { point.acquire(); }
  } const end{running.end};
  const std::vector<uint64_t> order = cluster_order(grid);
  run_clusters(grid, order);
  if (LaunchTrace* const trace = LaunchTrace::current()) {
    trace->begin_record(grid, order.size() * side_by_side(grid));
    // Where tensors begin and end is seen there.
    if (grid.options.sampled_blocks) run_clusters(grid, ends_of(grid));
    trace->end_record();
  }
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
  // Eight: what every GPU with clusters has ("portable").
  check(launch.cluster <= 1 || (profile.capability >= 90 && launch.cluster <= 8 &&
                                launch.grid.x % launch.cluster == 0),
        "with ", launch.grid.x, " blocks in clusters of ", launch.cluster, " on sm_",
        profile.capability);
  // The work owns the arguments: a graph runs it many times.
  issue(launch.stream, [=, arguments = std::move(arguments)](const Options& at_launch) {
    run_grid(std::make_unique<Grid>(Grid{kernel, launch.grid, launch.block, launch.shared_bytes,
                                         launch.cluster, launch.overlaps, at_launch, body,
                                         arguments.get()}));
  });
}

}  // namespace tessera::simt
