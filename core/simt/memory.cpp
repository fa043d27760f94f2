// Device and pinned host memory, and copies.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "core/simt/runner.h"
#include "core/simt/stream.h"

namespace tessera::simt {
namespace {

constexpr size_t kAlignment = 256;

// Between redzones where AddressSanitizer watches. Null when the host has not enough.
void* allocate(Machine& machine, size_t bytes, bool device) {
  void* base = nullptr;
  if (posix_memalign(&base, kAlignment, bytes + 2 * kRedzone) != 0) return nullptr;
  std::byte* const memory = static_cast<std::byte*>(base) + kRedzone;
  poison_memory(base, kRedzone);
  poison_memory(memory + bytes, kRedzone);
  machine.memory[reinterpret_cast<uintptr_t>(memory)] = {bytes, device, false, base};
  fill_undefined(memory, bytes);
  return memory;
}

void* reserve(Machine& machine, size_t bytes) {
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  machine.memory[reinterpret_cast<uintptr_t>(memory)] = {bytes, true, true, memory};
  return memory;
}

// False when `memory` is not an allocation of this kind.
bool release(Machine& machine, void* memory, bool device) {
  const auto found = machine.memory.find(reinterpret_cast<uintptr_t>(memory));
  if (found == machine.memory.end() || found->second.device != device) return false;
  const auto& block = found->second;
  if (device && !block.reserved) {
    machine.use.bytes -= block.bytes;
    --machine.use.blocks;
  }
  if (block.reserved)
    munmap(block.base, block.bytes);
  else
    std::free(block.base);
  machine.memory.erase(found);
  return true;
}

bool fits(cudaMemcpyKind kind, Place to, Place from) {
  if (to == Place::Invalid || from == Place::Invalid) return false;
  const bool to_device = to == Place::Device, from_device = from == Place::Device;
  switch (kind) {
    case cudaMemcpyHostToHost:
      return !to_device && !from_device;
    case cudaMemcpyHostToDevice:
      return to_device && !from_device;
    case cudaMemcpyDeviceToHost:
      return !to_device && from_device;
    case cudaMemcpyDeviceToDevice:
      return to_device && from_device;
    case cudaMemcpyDefault:
      return true;
  }
  return false;
}

}  // namespace

Place Machine::place_of(const void* p, size_t bytes) const {
  const auto first = reinterpret_cast<uintptr_t>(p);
  auto next = memory.upper_bound(first);
  if (next != memory.begin()) {
    const auto& [start, block] = *std::prev(next);
    if (first < start + block.bytes) {
      if (bytes > start + block.bytes - first) return Place::Invalid;
      return block.device ? Place::Device : Place::Pinned;
    }
  }
  if (next != memory.end() && next->first < first + bytes) return Place::Invalid;
  return p ? Place::Pageable : Place::Invalid;
}

MemoryUse memory_use() {
  std::lock_guard lock(Machine::get().mutex);
  return Machine::get().use;
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  if (in_host_function) return result(cudaErrorNotPermitted);
  Machine& machine = Machine::get();
  std::lock_guard lock(machine.mutex);
  *pointer = nullptr;
  if (machine.refuses_in_capture()) return result(cudaErrorStreamCaptureUnsupported);
  if (bytes >= options().reserve_from) {
    *pointer = reserve(machine, bytes);
    return *pointer ? cudaSuccess : result(cudaErrorMemoryAllocation);
  }
  const size_t total = options().total_memory;
  if (++machine.use.allocations == options().failing_allocation || machine.use.bytes > total ||
      bytes > total - machine.use.bytes)
    return result(cudaErrorMemoryAllocation);
  if (bytes == 0) return cudaSuccess;
  *pointer = allocate(machine, bytes, true);
  if (!*pointer) return result(cudaErrorMemoryAllocation);
  machine.use.bytes += bytes;
  ++machine.use.blocks;
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  if (in_host_function) return result(cudaErrorNotPermitted);
  Machine& machine = Machine::get();
  std::lock_guard lock(machine.mutex);
  if (!pointer) return cudaSuccess;
  if (machine.refuses_in_capture()) return result(cudaErrorStreamCaptureUnsupported);
  machine.quietly([&] { machine.finish_all(); });
  return release(machine, pointer, true) ? cudaSuccess : result(cudaErrorInvalidValue);
}

cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  if (in_host_function) return result(cudaErrorNotPermitted);
  Machine& machine = Machine::get();
  std::lock_guard lock(machine.mutex);
  *pointer = nullptr;
  if (machine.refuses_in_capture()) return result(cudaErrorStreamCaptureUnsupported);
  if (++machine.use.pinned_allocations == options().failing_pinned_allocation)
    return result(cudaErrorMemoryAllocation);
  if (bytes == 0) return cudaSuccess;
  *pointer = allocate(machine, bytes, false);
  return *pointer ? cudaSuccess : result(cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void* pointer) {
  if (in_host_function) return result(cudaErrorNotPermitted);
  Machine& machine = Machine::get();
  std::lock_guard lock(machine.mutex);
  if (!pointer) return cudaSuccess;
  if (machine.refuses_in_capture()) return result(cudaErrorStreamCaptureUnsupported);
  machine.quietly([&] { machine.finish_all(); });
  return release(machine, pointer, false) ? cudaSuccess : result(cudaErrorInvalidValue);
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = options().total_memory;
  *free = *total - std::min(*total, memory_use().bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (in_host_function) return result(cudaErrorNotPermitted);
  Machine& machine = Machine::get();
  std::lock_guard lock(machine.mutex);
  if (!machine.known(stream)) return result(cudaErrorInvalidResourceHandle);
  if (bytes == 0) return cudaSuccess;
  const Place to_place = machine.place_of(to, bytes), from_place = machine.place_of(from, bytes);
  if (!fits(kind, to_place, from_place)) return result(cudaErrorInvalidValue);
  const auto first_to = reinterpret_cast<uintptr_t>(to),
             first_from = reinterpret_cast<uintptr_t>(from);  // overlapping: undefined
  if (std::max(first_to, first_from) - std::min(first_to, first_from) < bytes)
    return result(cudaErrorInvalidValue);
  if (stream->capture) {
    if (stream->capture->spoilt) return result(cudaErrorStreamCaptureInvalidated);
    if (to_place == Place::Pageable || from_place == Place::Pageable) {
      stream->capture->spoilt = true;
      return result(cudaErrorStreamCaptureUnsupported);
    }
  }
  if (from_place == Place::Pageable) {
    const auto* const first = static_cast<const std::byte*>(from);
    issue(stream, [=, staged = std::vector<std::byte>(first, first + bytes)](const Options&) {
      const Watched scope;
      std::memcpy(to, staged.data(), bytes);
    });
  } else {
    issue(stream, [=](const Options&) {
      const Watched scope;
      std::memcpy(to, from, bytes);
    });
  }
  if (to_place == Place::Pageable) machine.finish(*stream);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* pointer, int byte, size_t bytes, cudaStream_t stream) {
  if (in_host_function) return result(cudaErrorNotPermitted);
  Machine& machine = Machine::get();
  std::lock_guard lock(machine.mutex);
  if (!machine.known(stream)) return result(cudaErrorInvalidResourceHandle);
  if (bytes == 0) return cudaSuccess;
  if (machine.place_of(pointer, bytes) != Place::Device) return result(cudaErrorInvalidValue);
  if (stream->capture && stream->capture->spoilt) return result(cudaErrorStreamCaptureInvalidated);
  issue(stream, [=](const Options&) {
    const Watched scope;
    std::memset(pointer, byte, bytes);
  });
  return cudaSuccess;
}

void fill_undefined_async(void* memory, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return;
  {
    std::lock_guard lock(Machine::get().mutex);
    ENSURE(Machine::get().place_of(memory, bytes) == Place::Device, bytes, " bytes at ", memory,
           " are not in one device allocation");
  }
  issue(stream, [=](const Options&) { fill_undefined(memory, bytes); });
}

}  // namespace tessera::simt
