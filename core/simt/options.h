// What the host model emulates and how unkind it is. One per process, as the GPU of a CUDA program
// is; a launch goes by the options at the time when it was issued.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera::simt {

// The limits of an architecture (CUDA C++ Programming Guide, "Compute Capabilities").
struct Profile {
  int capability;  // 10 * major + minor: 75, 80, 89, 90 (with the features of sm_90a)
  int multiprocessors;
  size_t shared_per_block;  // bytes that a block can have when it asks for them
  int major() const { return capability / 10; }
  int minor() const { return capability % 10; }
};

// Throws InputError for anything but 75, 80, 89 and 90.
const Profile& profile_of(int capability);

// In which order blocks, warps, threads, streams and the nodes of a graph run.
enum class Order { Ascending, Descending, Random };
// When an asynchronous operation takes place: as soon or as late as the rules allow. Work on a
// stream: when it is issued, when somebody waits for it, or at any time between.
enum class Landing { Earliest, Latest, Random };

struct Options {
  Profile profile = profile_of(90);
  uint64_t seed = 0;  // of Order::Random and Landing::Random
  Order order = Order::Ascending;
  Landing landing = Landing::Latest;
  int workers = 0;  // host threads that run blocks, 0: as many as there are
  // Arithmetic on a value that was never written (a signalling NaN) is an error. For data without
  // infinities: inf - inf raises the same flag.
  bool trap_uninitialised = false;
  // For tests of huge indices. Only blocks first_block .. first_block + blocks - 1 of a grid run,
  // or the last `blocks` of them; of clusters, those that these are in.
  static constexpr uint64_t kFromTheEnd = UINT64_MAX;
  uint64_t first_block = 0, blocks = UINT64_MAX;
  // For counting (core/simt/trace.h): of a grid with more blocks than this, as many run, one in
  // each of as many equal parts of it, and a few at both ends that are not counted; 0: all. Of
  // clusters, as many as these blocks fill.
  uint64_t sampled_blocks = 0;
  // Allocations of as many bytes or more are address space alone, of which pages come into being as
  // they are touched: zeros, not NaNs. They do not count as used.
  size_t reserve_from = SIZE_MAX;
  size_t total_memory = size_t{8} << 30;  // bytes of the device
  // The cudaMalloc and the cudaMallocHost that fail, counted from 1 (memory_use() counts them);
  // 0: none.
  uint64_t failing_allocation = 0, failing_pinned_allocation = 0;
  // What the runtime says of the machine: 0, no driver; as CUDA numbers versions.
  int driver_version = 13000;
  int devices = 1;
};

Options& options();

// Sets options for a scope.
class ScopedOptions {
 public:
  explicit ScopedOptions(const Options& changed) : saved_(options()) { options() = changed; }
  ~ScopedOptions() { options() = saved_; }
  ScopedOptions(const ScopedOptions&) = delete;
  ScopedOptions& operator=(const ScopedOptions&) = delete;

 private:
  Options saved_;
};

}  // namespace tessera::simt
