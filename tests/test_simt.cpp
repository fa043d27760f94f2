// The host model's blocks: indices, barriers, shared memory, atomics, clusters. Every
// primitive against its definition, in several orders.
#include <set>

#include "tests/simt_device.h"

namespace tessera::simt {
namespace {

const unsigned kSizes[] = {1, 31, 32, 33, 100, 1024};

void index_kernel(unsigned* seen) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  atomicAdd(&seen[block * threads + thread], 1 + thread);
}

// Each round every thread reads what its neighbour wrote in the one before.
void rounds_kernel(int* out, int rounds) {
  auto& values = shared_memory<int[2][1024]>();
  const int n = int(blockDim.x), i = int(threadIdx.x);
  values[0][i] = i;
  __syncthreads();
  for (int round = 0; round < rounds; ++round) {
    values[(round + 1) % 2][i] = values[round % 2][(i + 1) % n];
    __syncthreads();
  }
  out[i] = values[rounds % 2][i];
}

void votes_of_block_kernel(int* out) {
  const int i = int(threadIdx.x), odd = i % 2;
  const int count = __syncthreads_count(odd), all = __syncthreads_and(odd),
            any = __syncthreads_or(odd), all_ones = __syncthreads_and(2),
            no_one = __syncthreads_or(0);
  out[i] = count * 16 + all + any * 2 + all_ones * 4 + no_one * 8;
}

// Warp 0 makes, the others take: two named barriers with counts, as a pipeline has them.
void pipeline_kernel(int* out, int rounds) {
  auto& slot = shared_memory<int>();
  const int threads = int(blockDim.x);
  int sum = 0;
  for (int round = 0; round < rounds; ++round) {
    if (threadIdx.x < 32) {
      if (threadIdx.x == 0) slot = 1 + round;
      block_arrive(1, threads, "full", Where::current());
      block_barrier(2, threads, 0, "empty", Where::current());
    } else {
      block_barrier(1, threads, 0, "full", Where::current());
      sum += slot;
      block_barrier(2, threads, 0, "empty", Where::current());
    }
  }
  out[threadIdx.x] = sum;
}

void half_barrier_kernel(int* out) {
  auto& values = shared_memory<int[128]>();
  const unsigned half = threadIdx.x / 64;
  for (int round = 0; round < 3; ++round) {
    values[threadIdx.x] = int(threadIdx.x) + round;
    block_barrier(1 + int(half), 64, 0, "half", Where::current());
    out[threadIdx.x] = values[half * 64 + (threadIdx.x + 1) % 64];
    block_barrier(1 + int(half), 64, 0, "half", Where::current());
    if (half) return;  // the halves are independent
  }
}

// The last warp, of 16 threads, meets itself: it counts as 32.
void partial_warp_kernel(int* out) {
  auto& values = shared_memory<int[48]>();
  values[threadIdx.x] = int(threadIdx.x);
  if (threadIdx.x >= 32) {
    block_barrier(1, 32, 0, "half", Where::current());
    out[threadIdx.x] = values[79 - threadIdx.x];
  }
  block_barrier(2, 64, 0, "all", Where::current());
  if (threadIdx.x < 32) out[threadIdx.x] = values[47 - threadIdx.x];
}

void atomics_kernel(int* i, unsigned* u, unsigned long long* l) {
  const int t = int(blockIdx.x * blockDim.x + threadIdx.x), n = int(gridDim.x * blockDim.x);
  atomicAdd(&i[0], t - n / 2);
  atomicSub(&i[1], t);
  atomicMax(&i[2], t - n / 2);
  atomicMin(&i[3], t - n / 2);
  for (int old = 0, seen; (seen = atomicCAS(&i[4], old, old + 2)) != old;) old = seen;
  atomicAdd(&u[0], unsigned(t));
  atomicMax(&u[1], unsigned(t));
  atomicMin(&u[2], unsigned(t));
  atomicAnd(&u[3], ~(1u << t % 32));
  atomicOr(&u[4], 1u << t % 32);
  atomicXor(&u[5], unsigned(t));
  atomicInc(&u[6], 9);
  atomicAdd(&l[0], 1ull << 33);
  atomicMax(&l[1], (1ull << 40) + unsigned(t));
  atomicAdd(&l[2], atomicExch(&u[7], unsigned(t)));  // all but the last, and the first value
}

// The last block to come sums what all have written (CUDA samples' threadFenceReduction).
void last_block_kernel(const int* in, int* partial, unsigned* ticket, int* out) {
  struct Shared {
    int sum;
    bool last;
  };
  auto& shared = shared_memory<Shared>();
  if (threadIdx.x == 0) shared.sum = 0;
  __syncthreads();
  atomicAdd(&shared.sum, in[blockIdx.x * blockDim.x + threadIdx.x]);
  __syncthreads();
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = shared.sum;
    __threadfence();
    shared.last = atomicAdd(ticket, 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!shared.last || threadIdx.x != 0) return;
  __threadfence();
  int sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];
  *out = sum;
}

// Blocks take numbers and wait for the one before: goes on only if blocks that wait let others run.
void chain_kernel(unsigned* ticket, unsigned* turn, unsigned* out) {
  const unsigned mine = atomicAdd(ticket, 1);
  while (atomicAdd(turn, 0) != mine) yield_thread("its turn");
  out[mine] = blockIdx.x;
  atomicAdd(turn, 1);
}

// Numbers go round in a cluster of `size` blocks.
void cluster_rounds_kernel(int* values, unsigned size, int rounds) {
  const unsigned n = size * blockDim.x, first = blockIdx.x / size * n;
  const unsigned i = blockIdx.x % size * blockDim.x + threadIdx.x;
  values += 2 * first;
  for (int round = 0; round < rounds; ++round) {
    values[(round + 1) % 2 * n + i] = values[round % 2 * n + (i + blockDim.x) % n];
    cluster_sync();
  }
}

void random_kernel(uint32_t* out) { out[blockIdx.x * blockDim.x + threadIdx.x] = random_choice(); }

}  // namespace

TEST_CASE("every thread of every block runs once", "[simt][slow]") {
  const dim3 grids[] = {{1}, {7}, {3, 4}, {2, 3, 4}}, blocks[] = {{1}, {33}, {8, 5, 3}, {16, 64}};
  in_every_order([&] {
    for (const dim3& grid : grids)
      for (const dim3& block : blocks) {
        Array<unsigned> seen(std::vector<unsigned>(grid.count() * block.count()));
        run<index_kernel>(grid, block, 0, seen);
        const auto values = seen.values();
        for (size_t i = 0; i < values.size(); ++i) REQUIRE(values[i] == 1 + i % block.count());
      }
  });
}

TEST_CASE("only the blocks of the window run", "[simt]") {
  const ScopedOptions scope(options());
  options().first_block = 3;
  options().blocks = 2;
  Array<unsigned> seen(std::vector<unsigned>(10));
  run<index_kernel>(dim3(10), dim3(1), 0, seen);
  CHECK(seen.values() == std::vector<unsigned>{0, 0, 0, 1, 1, 0, 0, 0, 0, 0});
  options().first_block = Options::kFromTheEnd;
  run<index_kernel>(dim3(10), dim3(1), 0, seen);
  CHECK(seen.values() == std::vector<unsigned>{0, 0, 0, 1, 1, 0, 0, 0, 1, 1});
}

TEST_CASE("__syncthreads makes writes of the others visible", "[simt]") {
  in_every_order([] {
    for (unsigned n : kSizes) {
      Array<int> out(n);
      run<rounds_kernel>(dim3(1), dim3(n), sizeof(int[2][1024]), out, 9);
      for (unsigned i = 0; i < n; ++i) REQUIRE(out[i] == int((i + 9) % n));
    }
  });
}

TEST_CASE("__syncthreads_count, _and and _or", "[simt]") {
  in_every_order([] {
    for (unsigned n : kSizes) {
      Array<int> out(n);
      run<votes_of_block_kernel>(dim3(1), dim3(n), 0, out);
      const int expected = int(n / 2) * 16 + 0 + (n > 1) * 2 + 4;
      for (unsigned i = 0; i < n; ++i) REQUIRE(out[i] == expected);
    }
  });
}

TEST_CASE("named barriers: arrive and sync, and two groups of their own", "[simt]") {
  in_every_order([] {
    Array<int> out(96);
    run<pipeline_kernel>(dim3(1), dim3(96), 4, out, 5);
    for (unsigned i = 0; i < 96; ++i) REQUIRE(out[i] == (i < 32 ? 0 : 15));
    Array<int> halves(128);
    run<half_barrier_kernel>(dim3(1), dim3(128), 512, halves);
    for (int i = 0; i < 128; ++i)
      REQUIRE(halves[i] == (i < 64 ? (i + 1) % 64 + 2 : 64 + (i + 1) % 64));
  });
}

TEST_CASE("a warp of fewer threads counts as 32 at a barrier", "[simt]") {
  in_every_order([] {
    Array<int> out(48);
    run<partial_warp_kernel>(dim3(1), dim3(48), 192, out);
    for (int i = 0; i < 48; ++i) REQUIRE(out[i] == (i < 32 ? 47 - i : 79 - i));
  });
}

TEST_CASE("atomics", "[simt]") {
  in_every_order([] {
    const int n = 5 * 67;
    Array<int> i({0, 0, -1000, 1000, 0});
    Array<unsigned> u({0, 0, 1000, ~0u, 0, 0, 0, 77});
    Array<unsigned long long> l({0, 0, 0});
    run<atomics_kernel>(dim3(5), dim3(67), 0, i, u, l);
    const int sum = n * (n - 1) / 2;
    unsigned all_xored = 0;
    for (unsigned t = 0; t < n; ++t) all_xored ^= t;
    CHECK(i.values() == std::vector<int>{sum - n * (n / 2), -sum, n - 1 - n / 2, -(n / 2), 2 * n});
    const unsigned last = u[7];
    CHECK(u.values() ==
          std::vector<unsigned>{unsigned(sum), n - 1, 0, 0, ~0u, all_xored, n % 10, last});
    CHECK(l.values() == std::vector<unsigned long long>{uint64_t{n} << 33, (1ull << 40) + n - 1,
                                                        uint64_t(sum) + 77 - last});
  });
}

// Without the fences the sum is right, too, but ThreadSanitizer finds a race: simt_faults.cpp.
TEST_CASE("the last block sees what the others wrote before their fences", "[simt]") {
  in_every_order([] {
    Array<int> in(std::vector<int>(8 * 64, 3)), partial(8), out(1);
    Array<unsigned> ticket(std::vector{0u});
    run<last_block_kernel>(dim3(8), dim3(64), 8, in, partial, ticket, out);
    CHECK(out[0] == 8 * 64 * 3);
  });
}

TEST_CASE("blocks that poll wait for blocks that run on other host threads", "[simt]") {
  in_every_order([] {
    for (int workers : {1, 4}) {
      options().workers = workers;
      Array<unsigned> ticket(std::vector{0u}), turn(std::vector{0u}), out(40);
      run<chain_kernel>(dim3(40), dim3(1), 0, ticket, turn, out);
      auto blocks = out.values();
      std::sort(blocks.begin(), blocks.end());
      for (unsigned i = 0; i < 40; ++i) REQUIRE(blocks[i] == i);
    }
  });
}

TEST_CASE("cluster_sync, and which clusters run", "[simt]") {
  const ScopedOptions scope(options());
  options().profile = profile_of(90);
  in_every_order([] {
    for (unsigned size : {1u, 3u, 8u})
      for (unsigned block : {1u, 33u, 96u}) {
        const unsigned n = size * block, clusters = 5;
        std::vector<int> start(2 * n * clusters);
        for (unsigned i = 0; i < start.size(); ++i) start[i] = int(i % (2 * n));
        const auto values_of = [&](uint64_t first, uint64_t blocks) {
          const ScopedOptions some(options());
          options().first_block = first, options().blocks = blocks;
          Array<int> values(start);
          TestStream stream;
          launch<cluster_rounds_kernel>({stream, dim3(size * clusters), dim3(block), 0, size},
                                        values, size, 4);
          stream.wait();
          return values.values();
        };
        const auto all = values_of(0, UINT64_MAX);
        for (unsigned i = 0; i < start.size(); ++i)
          if (i % (2 * n) < n) REQUIRE(all[i] == int((i % (2 * n) + 4 * block) % n));
        // The clusters that these blocks are in, as a whole.
        const auto second = values_of(size + size / 2, 1),
                   last = values_of(Options::kFromTheEnd, 1);
        for (unsigned i = 0; i < start.size(); ++i) {
          REQUIRE(second[i] == (i / (2 * n) == 1 ? all : start)[i]);
          REQUIRE(last[i] == (i / (2 * n) == clusters - 1 ? all : start)[i]);
        }
      }
  });
}

TEST_CASE("clusters that a profile does not have are refused", "[simt]") {
  const ScopedOptions scope(options());
  Array<int> values(1);
  TestStream stream;
  const auto refused = [&](int capability, unsigned blocks, unsigned size) {
    options().profile = profile_of(capability);
    return fault_of([&] {
      launch<cluster_rounds_kernel>({stream, dim3(blocks), dim3(32), 0, size}, values, size, 0);
    });
  };
  CHECK(refused(90, 16, 8) == "");
  CHECK(refused(80, 16, 1) == "");
  CHECK_THAT(refused(89, 16, 2), Catch::Contains("cluster_rounds_kernel with 16 blocks in clusters "
                                                 "of 2 on sm_89"));
  CHECK(refused(90, 15, 2) != "");
  CHECK(refused(90, 18, 9) != "");
}

TEST_CASE("random choices depend on seed, block and thread, and on nothing else", "[simt]") {
  const ScopedOptions scope(options());
  const auto numbers = [](uint64_t seed, int workers) {
    options().seed = seed;
    options().workers = workers;
    Array<uint32_t> out(8 * 32);
    run<random_kernel>(dim3(8), dim3(32), 0, out);
    return out.values();
  };
  const auto first = numbers(1, 1);
  CHECK(numbers(1, 4) == first);
  CHECK(numbers(2, 1) != first);
  CHECK(std::set<uint32_t>(first.begin(), first.end()).size() > 250);
}

}  // namespace tessera::simt
