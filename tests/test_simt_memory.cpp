// The host model's memory: limits, failures, wrong pointers, copies from pageable and pinned
// memory.
#include "tests/simt_device.h"

namespace tessera::simt {
namespace {

void add_one_kernel(int* values) { values[threadIdx.x] += 1; }

}  // namespace

TEST_CASE("fresh device memory is aligned and holds signalling NaNs", "[simt]") {
  Array<unsigned> memory(1001);
  CHECK(reinterpret_cast<uintptr_t>(static_cast<unsigned*>(memory)) % 256 == 0);
  for (unsigned i = 0; i < 1001; ++i) REQUIRE(memory[i] == 0x7FBF7FBF);
}

TEST_CASE("cudaMalloc fails beyond the device's memory, and gives it back", "[simt]") {
  const ScopedOptions scope(options());
  const MemoryUse before = memory_use();
  options().total_memory = before.bytes + 1000;
  size_t free = 0, total = 0;
  void *a = nullptr, *b = nullptr;
  CHECK(cudaMalloc(&a, 1001) == cudaErrorMemoryAllocation);
  CHECK(a == nullptr);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK(cudaMalloc(&a, 600) == cudaSuccess);
  CHECK(cudaMalloc(&b, 401) == cudaErrorMemoryAllocation);
  REQUIRE(cudaMemGetInfo(&free, &total) == cudaSuccess);
  CHECK(free == 400);
  CHECK(total == before.bytes + 1000);
  CHECK(cudaFree(a) == cudaSuccess);
  CHECK(cudaMalloc(&b, 1000) == cudaSuccess);
  CHECK(cudaFree(b) == cudaSuccess);
  CHECK(memory_use().bytes == before.bytes);
  CHECK(memory_use().blocks == before.blocks);
}

TEST_CASE("the n-th cudaMalloc fails", "[simt]") {
  const ScopedOptions scope(options());
  options().failing_allocation = memory_use().allocations + 2;
  void* memory[3];
  CHECK(cudaMalloc(&memory[0], 8) == cudaSuccess);
  CHECK(cudaMalloc(&memory[1], 8) == cudaErrorMemoryAllocation);
  CHECK(cudaMalloc(&memory[2], 8) == cudaSuccess);
  CHECK(cudaPeekAtLastError() == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
  for (void* one : memory) CHECK(cudaFree(one) == cudaSuccess);
}

TEST_CASE("the n-th cudaMallocHost fails", "[simt]") {
  const ScopedOptions scope(options());
  options().failing_pinned_allocation = memory_use().pinned_allocations + 2;
  void *first, *second = &first, *device;
  CHECK(cudaMallocHost(&first, 8) == cudaSuccess);
  CHECK(cudaMalloc(&device, 8) == cudaSuccess);  // is counted for itself
  CHECK(cudaMallocHost(&second, 8) == cudaErrorMemoryAllocation);
  CHECK(second == nullptr);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
  CHECK(cudaFree(device) == cudaSuccess);
  CHECK(cudaFreeHost(first) == cudaSuccess);
}

TEST_CASE("what is not an allocation cannot be freed", "[simt]") {
  void *device = nullptr, *pinned = nullptr;
  int local = 0;
  REQUIRE(cudaMalloc(&device, 64) == cudaSuccess);
  REQUIRE(cudaMallocHost(&pinned, 64) == cudaSuccess);
  CHECK(cudaFree(static_cast<char*>(device) + 4) == cudaErrorInvalidValue);
  CHECK(cudaFree(&local) == cudaErrorInvalidValue);
  CHECK(cudaFree(pinned) == cudaErrorInvalidValue);
  CHECK(cudaFreeHost(device) == cudaErrorInvalidValue);
  CHECK(cudaFree(nullptr) == cudaSuccess);
  CHECK(cudaFreeHost(nullptr) == cudaSuccess);
  CHECK(cudaFree(device) == cudaSuccess);
  CHECK(cudaFreeHost(pinned) == cudaSuccess);
  CHECK(cudaFree(device) == cudaErrorInvalidValue);  // twice
  CHECK(cudaFreeHost(pinned) == cudaErrorInvalidValue);
  cudaGetLastError();
}

TEST_CASE("copies and fills must stay in allocations of the right kind", "[simt]") {
  TestStream stream;
  Array<char> a(100), b(50);
  char host[100] = {};
  const auto copy = [&](void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, bytes, kind, stream);
  };
  CHECK(copy(a, host, 100, cudaMemcpyHostToDevice) == cudaSuccess);
  CHECK(copy(a + 1, host, 100, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(copy(b, a, 51, cudaMemcpyDeviceToDevice) == cudaErrorInvalidValue);
  CHECK(copy(host, b, 51, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  CHECK(copy(host, a, 100, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);  // wrong way
  CHECK(copy(a, b, 10, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  CHECK(copy(a, host, 10, cudaMemcpyDeviceToDevice) == cudaErrorInvalidValue);
  CHECK(copy(nullptr, a, 1, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  CHECK(copy(nullptr, nullptr, 0, cudaMemcpyDeviceToHost) == cudaSuccess);
  CHECK(copy(b, a + 50, 50, cudaMemcpyDefault) == cudaSuccess);
  CHECK(cudaMemsetAsync(a, 1, 101, stream) == cudaErrorInvalidValue);
  CHECK(cudaMemsetAsync(host, 1, 1, stream) == cudaErrorInvalidValue);
  CHECK(cudaMemsetAsync(a + 99, 1, 1, stream) == cudaSuccess);
  CHECK(cudaGetLastError() == cudaErrorInvalidValue);
  stream.wait();
  CHECK(a[99] == 1);
}

TEST_CASE("pageable memory is read at the call, and complete where it is written", "[simt]") {
  in_every_order([] {
    TestStream stream;
    Array<int> device(4);
    int from[4] = {1, 2, 3, 4}, to[4] = {};
    cudaMemcpyAsync(device, from, 16, cudaMemcpyHostToDevice, stream);
    from[0] = 99;
    launch<add_one_kernel>({stream, dim3(1), dim3(4)}, device);
    cudaMemcpyAsync(to, device, 16, cudaMemcpyDeviceToHost, stream);
    CHECK((to[0] == 2 && to[3] == 5));
  });
}

TEST_CASE("pinned memory is read and written when the copy's turn comes", "[simt][race]") {
  const ScopedOptions scope(options());
  int* pinned = nullptr;
  REQUIRE(cudaMallocHost(reinterpret_cast<void**>(&pinned), 32) == cudaSuccess);
  const auto first_of_round_trip = [&] {
    TestStream stream;
    Array<int> device(4);
    for (int i = 0; i < 8; ++i) pinned[i] = i;
    cudaMemcpyAsync(device, pinned, 16, cudaMemcpyHostToDevice, stream);
    pinned[0] = 99;  // too early
    launch<add_one_kernel>({stream, dim3(1), dim3(4)}, device);
    cudaMemcpyAsync(pinned + 4, device, 16, cudaMemcpyDeviceToHost, stream);
    const int before = pinned[4];
    stream.wait();
    CHECK(pinned[5] == 2);
    return std::pair(before, pinned[4]);
  };
  options().landing = Landing::Earliest;
  CHECK(first_of_round_trip() == std::pair(1, 1));
  options().landing = Landing::Latest;
  CHECK(first_of_round_trip() == std::pair(4, 100));
  options().landing = Landing::Random;
  bool early = false, late = false;
  for (options().seed = 0; options().seed < 20; ++options().seed) {
    const auto [before, after] = first_of_round_trip();
    early |= before == after;
    late |= after == 100;
  }
  CHECK((early && late));
  CHECK(cudaFreeHost(pinned) == cudaSuccess);
}

TEST_CASE("the device's properties are those of the profile", "[simt]") {
  const ScopedOptions scope(options());
  cudaDeviceProp properties;
  for (int capability : {75, 80, 89, 90}) {
    options().profile = profile_of(capability);
    REQUIRE(cudaGetDeviceProperties(&properties, 0) == cudaSuccess);
    CHECK(properties.major * 10 + properties.minor == capability);
    CHECK(properties.sharedMemPerBlockOptin == profile_of(capability).shared_per_block);
    CHECK(properties.totalGlobalMem == options().total_memory);
  }
  CHECK(cudaGetDeviceProperties(&properties, 1) == cudaErrorInvalidDevice);
  CHECK(cudaSetDevice(1) == cudaErrorInvalidDevice);
  CHECK(cudaGetLastError() == cudaErrorInvalidDevice);
  CHECK_THROWS_AS(profile_of(70), InputError);
}

}  // namespace tessera::simt
