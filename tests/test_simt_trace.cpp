// What launches do is counted: how often, on how many bytes, by which part of the blocks.
#include "core/simt/trace.h"

#include "tests/simt_device.h"

using namespace tessera::simt;

namespace {

struct alignas(16) Four {
  float values[4];
};

// A thread's four floats, by way of shared memory.
void copy_kernel(const float* from, float* to, int n) {
  auto& shared = shared_memory<Four[32]>();
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x) * 4;
  if (i >= n) return;
  store_vector(&shared[threadIdx.x], load_vector<Four>(from + i));
  store_vector(to + i, load_vector<Four>(&shared[threadIdx.x]));
}

constexpr unsigned kBlocks = 1000, kThreads = 32;
constexpr int kFloats = int(kBlocks * kThreads) * 4 - 8;  // two threads have nothing to do

void run_copy(const float* from, float* to) {
  run<copy_kernel>(dim3(kBlocks), dim3(kThreads), sizeof(Four[32]), from, to, kFloats);
}

}  // namespace

TEST_CASE("what a launch moves is counted", "[simt]") {
  const ScopedOptions scope(options());
  const Array<float> from(std::vector<float>(kFloats, 1)), to(kFloats);
  run_copy(from, to);  // before the trace
  const LaunchTrace trace;
  run_copy(from, to);
  run_copy(from, to);
  REQUIRE(trace.launches.size() == 2);
  for (const LaunchRecord& launch : trace.launches) {
    CHECK(launch.kernel.ends_with("copy_kernel"));
    CHECK(launch.grid.x == kBlocks);
    CHECK(launch.block.x == kThreads);
    CHECK(launch.shared_bytes == 512);
    CHECK(launch.ran == kBlocks);
    // Global memory alone, each once.
    CHECK(launch.counted[kLoaded] == 4 * kFloats);
    CHECK(launch.counted[kStored] == 4 * kFloats);
    CHECK(launch.counted[kVectorLoads] == kFloats / 4);
    CHECK(launch.counted[kVectorStores] == kFloats / 4);
    CHECK(launch.read == 4 * kFloats);
    CHECK(launch.written == 4 * kFloats);
    CHECK(launch.counted[kProducts] == 0);
  }
}

TEST_CASE("a launch of which no block runs has a record", "[simt]") {
  const ScopedOptions scope(options());
  const Array<float> from(std::vector<float>(kFloats, 1)), to(kFloats);
  const LaunchTrace trace;
  run_copy(from, to);
  options().blocks = 0;
  run_copy(from, to);
  REQUIRE(trace.launches.size() == 2);
  CHECK(trace.launches[0].written == 4 * kFloats);
  CHECK(trace.launches[1].ran == 0);
  CHECK(trace.launches[1].total(kLoaded) == 0);
  CHECK(trace.launches[1].written == 0);
}

TEST_CASE("a part of the blocks stands for all", "[simt]") {
  const ScopedOptions scope(options());
  options().sampled_blocks = 10;
  const Array<float> from(std::vector<float>(kFloats, 1));
  const Array<float> to(std::vector<float>(kFloats, 0));
  const LaunchTrace trace;
  run_copy(from, to);
  REQUIRE(trace.launches.size() == 1);
  const LaunchRecord& launch = trace.launches[0];
  CHECK(launch.ran == 10);
  CHECK(launch.counted[kLoaded] == 10 * kThreads * 16);
  CHECK(launch.total(kLoaded) == kBlocks * kThreads * 16);
  // The ends of both are seen.
  CHECK(launch.read == 4 * kFloats);
  CHECK(launch.written == 4 * kFloats);
  // One block of each tenth, and four at each end.
  const std::vector<float> values = to.values();
  int copied = 0;
  for (unsigned block = 0; block < kBlocks; ++block) copied += values[block * kThreads * 4] == 1;
  CHECK(copied >= 16);
  CHECK(copied <= 18);
  for (unsigned part = 0; part < 10; ++part) {
    int in_part = 0;
    for (unsigned block = part * 100; block < (part + 1) * 100; ++block)
      in_part += values[block * kThreads * 4] == 1;
    CHECK(in_part >= 1);
  }
}

TEST_CASE("a grid of few blocks runs whole", "[simt]") {
  const ScopedOptions scope(options());
  options().sampled_blocks = kBlocks;
  const Array<float> from(std::vector<float>(kFloats, 1)), to(kFloats);
  const LaunchTrace trace;
  run_copy(from, to);
  CHECK(trace.launches.at(0).ran == kBlocks);
  CHECK(trace.launches.at(0).counted[kStored] == 4 * kFloats);
  CHECK(to.values() == std::vector<float>(kFloats, 1));
}
