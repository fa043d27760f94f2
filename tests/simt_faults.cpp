// Broken kernels and programs for AddressSanitizer and ThreadSanitizer, each beside its correct
// twin. simt_faults <name> broken|right: built once with each sanitizer, run by
// test_sanitizers.cpp, which reads what the sanitizer says.
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "core/pool.h"
#include "core/simt/atomic.h"
#include "core/simt/launch.h"
#include "core/simt/math.h"
#include "core/simt/warp.h"
#include "kernels/cuda/ptx/arrive.h"

using namespace tessera::simt;

namespace {

// A program's device memory and stream.
struct Gpu {
  cudaStream_t stream;
  Gpu() { cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking); }
  ~Gpu() { cudaStreamDestroy(stream); }
  Gpu(const Gpu&) = delete;
  void wait() { cudaStreamSynchronize(stream); }
};
int* device_memory(size_t ints) {
  void* memory = nullptr;
  if (cudaMalloc(&memory, 4 * ints) != cudaSuccess) std::abort();
  return static_cast<int*>(memory);
}

template <auto Kernel, class... Arguments>
void run(dim3 grid, dim3 block, size_t shared_bytes, const Arguments&... arguments) {
  Gpu gpu;
  launch<Kernel>({gpu.stream, grid, block, shared_bytes}, arguments...);
  gpu.wait();
}

// --- AddressSanitizer: out of bounds.

void global_read_kernel(const int* in, int* out, int n) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) out[i] = in[i];
}
void global_write_kernel(int* out, int first) { out[first + int(threadIdx.x)] = 1; }
void shared_kernel(int* out, int n) {
  auto* const values = &shared_memory<int>();
  if (int(threadIdx.x) < n) values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[0];
}
void shared_read_kernel(int* out, int offset) {
  auto* const values = &shared_memory<int>();
  values[threadIdx.x] = 1;
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = values[int(threadIdx.x) + offset];
}
void vector_kernel(const int* in, int* out) {
  store_vector(out + 4 * threadIdx.x, load_vector<int4>(in + 4 * threadIdx.x));
}

void global_read(bool broken) {
  int *in = device_memory(33), *out = device_memory(64);
  run<global_read_kernel>(dim3(2), dim3(32), 0, in, out, broken ? 34 : 33);
  cudaFree(in);
  cudaFree(out);
}
void global_write(bool broken) {
  int* out = device_memory(8);
  run<global_write_kernel>(dim3(1), dim3(8), 0, out, broken ? -1 : 0);
  cudaFree(out);
}
void global_write_beyond(bool broken) {
  int* out = device_memory(8);
  run<global_write_kernel>(dim3(1), dim3(8), 0, out, broken ? 1 : 0);
  cudaFree(out);
}
// A pool's block has more bytes than the request, here 80 ints; its next owner may have more.
void pool_block(bool broken) {
  const auto pool = std::make_shared<tessera::Pool>(make_runtime());
  for (const int ints : {65, 70}) {
    const auto buffer = pool->allocate(size_t(4 * ints));
    run<global_write_kernel>(dim3(1), dim3(8), 0, reinterpret_cast<int*>(buffer->data()),
                             broken ? ints - 7 : ints - 8);
  }
}
void freed_memory(bool broken) {
  int *a = device_memory(8), *b = device_memory(8);
  cudaFree(b);
  run<global_write_kernel>(dim3(1), dim3(8), 0, broken ? b : a, 0);
  cudaFree(a);
}
void shared_write(bool broken) {
  int* out = device_memory(64);
  run<shared_kernel>(dim3(1), dim3(64), 60 * 4, out, broken ? 61 : 60);
  run<shared_kernel>(dim3(1), dim3(64), 64 * 4, out, 64);
  cudaFree(out);
}
// A block that asked for more has run before: its bytes are no longer there.
void smaller_shared_write(bool broken) {
  int* out = device_memory(64);
  run<shared_kernel>(dim3(1), dim3(64), 64 * 4, out, 64);
  run<shared_kernel>(dim3(1), dim3(64), 60 * 4, out, broken ? 61 : 60);
  cudaFree(out);
}
void shared_read(bool broken) {
  int* out = device_memory(128);
  run<shared_read_kernel>(dim3(2), dim3(64), 64 * 4, out, broken ? 1 : 0);
  cudaFree(out);
}
void shared_read_before(bool broken) {
  int* out = device_memory(128);
  run<shared_read_kernel>(dim3(2), dim3(64), 64 * 4, out, broken ? -1 : 0);
  cudaFree(out);
}
void vector_read(bool broken) {
  int *in = device_memory(broken ? 31 : 32), *out = device_memory(32);
  run<vector_kernel>(dim3(1), dim3(8), 0, in, out);
  cudaFree(in);
  cudaFree(out);
}

// --- ThreadSanitizer: data races.

template <bool broken>
void rotate_kernel(int* out, int rounds) {
  auto& values = shared_memory<int[64]>();
  const unsigned i = threadIdx.x;
  for (int round = 0; round < rounds; ++round) {
    values[i] = int(i) + round;
    __syncthreads();
    out[i] = values[(i + 1) % 64];
    if (!broken) __syncthreads();  // before the next round overwrites it
  }
}
template <bool broken>
void warp_kernel(int* out) {
  auto& values = shared_memory<int[64]>();
  const unsigned i = threadIdx.x;
  values[i] = int(i);
  if (!broken) __syncwarp();
  out[i] = values[i ^ 1];
}
// Ordered by the shuffle, which is a meeting of the warp, but not across warps.
template <bool broken>
void shuffle_kernel(int* out) {
  auto& values = shared_memory<int[64]>();
  const unsigned i = threadIdx.x;
  values[i] = int(i);
  const int value = __shfl_xor_sync(~0u, int(i), 1);
  out[i] = value + values[broken ? (i + 32) % 64 : i ^ 1];
}
template <bool broken>
void named_barrier_kernel(int* out) {
  auto& slot = shared_memory<int>();
  if (threadIdx.x < 32) {
    if (threadIdx.x == 3) slot = 5;
    block_arrive(1, 64, "full", Where::current());
  } else {
    if (!broken) block_barrier(1, 64, 0, "full", Where::current());
    out[threadIdx.x] = slot;
  }
  if (broken && threadIdx.x >= 32) block_barrier(1, 64, 0, "full", Where::current());
}
template <bool broken>
void counter_kernel(int* out) {
  auto& count = shared_memory<int>();
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  if (broken)
    count = count + 1;
  else
    atomicAdd(&count, 1);
  __syncthreads();
  if (threadIdx.x == 0) *out = count;
}
template <bool broken>
void neighbour_kernel(int* values) {
  const unsigned i = threadIdx.x;
  values[i] = int(i);
  if (!broken) __syncthreads();
  values[64 + i] = values[(i + 1) % 64];
}
template <bool broken>
void blocks_kernel(int* out) {
  if (threadIdx.x == 0) {
    if (broken)
      *out = *out + 1;
    else
      atomicAdd(out, 1);
  }
}
// The last block reads what the others wrote.
template <bool broken>
void ticket_kernel(int* partial, unsigned* ticket, int* out) {
  if (threadIdx.x != 0) return;
  partial[blockIdx.x] = 1;
  if (!broken) __threadfence();
  if (atomicAdd(ticket, 1) != gridDim.x - 1) return;
  if (!broken) __threadfence();
  for (unsigned i = 0; i < gridDim.x; ++i) *out += partial[i];
}
// The same by the kernels' own counters; what the others wrote is read by all of its threads.
template <bool broken>
void arrive_kernel(int* partial, unsigned* counter, int* out) {
  partial[blockIdx.x * blockDim.x + threadIdx.x] = 1;
  __syncthreads();
  const bool last = threadIdx.x == 0 && ptx::arrive(counter, gridDim.x - 1) == gridDim.x - 1;
  if (!broken && last) ptx::fence_arrived();
  if (!__syncthreads_or(last)) return;
  int sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i * blockDim.x + threadIdx.x];
  out[threadIdx.x] = sum;
}
template <bool broken>
void cluster_kernel(int* values) {
  const unsigned n = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  values[i] = int(i);
  if (!broken) cluster_sync();
  values[n + i] = values[(i + blockDim.x) % n];
}
void count_kernel(int* value) {
  if (threadIdx.x == 0) *value += 1;
}

#define TWINS(name, kernel, grid, block, shared, memory) \
  void name(bool broken) {                               \
    int* const out = device_memory(memory);              \
    if (broken)                                          \
      run<kernel<true>>(grid, block, shared, out);       \
    else                                                 \
      run<kernel<false>>(grid, block, shared, out);      \
    cudaFree(out);                                       \
  }
TWINS(missing_syncwarp, warp_kernel, dim3(1), dim3(64), 256, 64)
TWINS(missing_meeting, shuffle_kernel, dim3(1), dim3(64), 256, 64)
TWINS(missing_named_barrier, named_barrier_kernel, dim3(1), dim3(64), 4, 64)
TWINS(missing_atomic, counter_kernel, dim3(1), dim3(64), 4, 1)
TWINS(missing_global_barrier, neighbour_kernel, dim3(1), dim3(64), 0, 128)
TWINS(blocks, blocks_kernel, dim3(3), dim3(33), 0, 1)

void missing_barrier(bool broken) {
  int* const out = device_memory(64);
  if (broken)
    run<rotate_kernel<true>>(dim3(1), dim3(64), 256, out, 2);
  else
    run<rotate_kernel<false>>(dim3(1), dim3(64), 256, out, 2);
  cudaFree(out);
}
void missing_fence(bool broken) {
  int* const memory = device_memory(10);
  auto* const ticket = reinterpret_cast<unsigned*>(memory + 9);
  memory[8] = memory[9] = 0;
  if (broken)
    run<ticket_kernel<true>>(dim3(8), dim3(32), 0, memory, ticket, memory + 8);
  else
    run<ticket_kernel<false>>(dim3(8), dim3(32), 0, memory, ticket, memory + 8);
  cudaFree(memory);
}
void missing_arrived_fence(bool broken) {
  int* const memory = device_memory(8 * 32 + 32 + 1);
  auto* const counter = reinterpret_cast<unsigned*>(memory + 9 * 32);
  *counter = 0;
  if (broken)
    run<arrive_kernel<true>>(dim3(8), dim3(32), 0, memory, counter, memory + 8 * 32);
  else
    run<arrive_kernel<false>>(dim3(8), dim3(32), 0, memory, counter, memory + 8 * 32);
  cudaFree(memory);
}
void missing_cluster_sync(bool broken) {
  int* const values = device_memory(2 * 4 * 8);
  Gpu gpu;
  if (broken)
    launch<cluster_kernel<true>>({gpu.stream, dim3(4), dim3(8), 0, 4}, values);
  else
    launch<cluster_kernel<false>>({gpu.stream, dim3(4), dim3(8), 0, 4}, values);
  gpu.wait();
  cudaFree(values);
}
// Two streams and an event between them.
void missing_event(bool broken) {
  int* const value = device_memory(1);
  Gpu a, b;
  cudaEvent_t event;
  cudaEventCreate(&event);
  cudaMemsetAsync(value, 0, 4, a.stream);
  launch<count_kernel>({a.stream, dim3(1), dim3(32)}, value);
  launch<count_kernel>({a.stream, dim3(1), dim3(32)}, value);
  cudaEventRecord(event, a.stream);
  if (!broken) cudaStreamWaitEvent(b.stream, event);
  launch<count_kernel>({b.stream, dim3(1), dim3(32)}, value);
  cudaDeviceSynchronize();
  cudaEventDestroy(event);
  cudaFree(value);
}
// The host reads pinned memory that a copy writes.
void missing_wait(bool broken) {
  options().landing = Landing::Earliest;
  int* const value = device_memory(1);
  void* pinned = nullptr;
  cudaMallocHost(&pinned, 4);
  Gpu gpu;
  cudaMemsetAsync(value, 0, 4, gpu.stream);
  cudaMemcpyAsync(pinned, value, 4, cudaMemcpyDeviceToHost, gpu.stream);
  if (!broken) gpu.wait();
  std::printf("%d\n", *static_cast<volatile int*>(pinned));
  gpu.wait();
  cudaFreeHost(pinned);
  cudaFree(value);
}
// Two branches of a graph.
void missing_edge(bool broken) {
  int* const value = device_memory(1);
  Gpu main, branch;
  cudaEvent_t fork, join, between;
  for (cudaEvent_t* event : {&fork, &join, &between}) cudaEventCreate(event);
  cudaStreamBeginCapture(main.stream, cudaStreamCaptureModeGlobal);
  cudaMemsetAsync(value, 0, 4, main.stream);
  cudaEventRecord(fork, main.stream);
  cudaStreamWaitEvent(branch.stream, fork);
  launch<count_kernel>({main.stream, dim3(1), dim3(32)}, value);
  cudaEventRecord(between, main.stream);
  if (!broken) cudaStreamWaitEvent(branch.stream, between);
  launch<count_kernel>({branch.stream, dim3(1), dim3(32)}, value);
  cudaEventRecord(join, branch.stream);
  cudaStreamWaitEvent(main.stream, join);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaStreamEndCapture(main.stream, &graph);
  cudaGraphInstantiate(&exec, graph);
  cudaGraphLaunch(exec, main.stream);
  cudaGraphLaunch(exec, main.stream);
  main.wait();
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  for (cudaEvent_t event : {fork, join, between}) cudaEventDestroy(event);
  cudaFree(value);
}

const std::map<std::string, std::function<void(bool)>> kFaults = {
    {"global_read", global_read},
    {"global_write", global_write},
    {"global_write_beyond", global_write_beyond},
    {"pool_block", pool_block},
    {"freed_memory", freed_memory},
    {"shared_write", shared_write},
    {"smaller_shared_write", smaller_shared_write},
    {"shared_read", shared_read},
    {"shared_read_before", shared_read_before},
    {"vector_read", vector_read},
    {"missing_barrier", missing_barrier},
    {"missing_syncwarp", missing_syncwarp},
    {"missing_meeting", missing_meeting},
    {"missing_named_barrier", missing_named_barrier},
    {"missing_atomic", missing_atomic},
    {"missing_global_barrier", missing_global_barrier},
    {"blocks", blocks},
    {"missing_fence", missing_fence},
    {"missing_arrived_fence", missing_arrived_fence},
    {"missing_cluster_sync", missing_cluster_sync},
    {"missing_event", missing_event},
    {"missing_wait", missing_wait},
    {"missing_edge", missing_edge},
};

}  // namespace

int main(int count, char** arguments) {
  const auto found = count == 3 ? kFaults.find(arguments[1]) : kFaults.end();
  if (found == kFaults.end()) {
    std::fprintf(stderr, "usage: simt_faults <name> broken|right\n");
    for (const auto& [name, run] : kFaults) std::fprintf(stderr, "%s\n", name.c_str());
    return 2;
  }
  const bool broken = std::string(arguments[2]) == "broken";
  for (const Order order : {Order::Ascending, Order::Descending, Order::Random}) {
    options() = {};
    options().order = order;
    found->second(broken);
  }
}
