// What a kind of device does below tensors: memory, orders of execution, copies. One implementation
// for the CPU (core/device.cpp), one for CUDA and its host model (core/cuda/runtime.cpp).
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace tessera {

struct DeviceInfo {
  std::string name;             // "NVIDIA H200"
  int capability = 0;           // 10 * major + minor; 0: not a GPU
  int multiprocessors = 0;      // of a GPU
  size_t shared_per_block = 0;  // bytes that a block can have at most
  size_t l2_bytes = 0;
};

class Runtime {
 public:
  virtual ~Runtime() = default;

  virtual const DeviceInfo& info() const = 0;

  // Device memory, aligned to 64 bytes at least; nullptr when there is not enough.
  virtual void* allocate(size_t bytes) = 0;
  // All work that uses it has to be done before the memory is used again: waits for it.
  virtual void release(void* memory) noexcept = 0;
  // Bytes that could still be allocated; SIZE_MAX when unknown.
  virtual size_t free_bytes() = 0;

  // Page-locked memory of the host, which a device copies from without the help of the CPU; nullptr
  // when there is not enough. Plain memory on the CPU.
  virtual void* allocate_pinned(size_t bytes) = 0;
  // Waits for the work that uses it.
  virtual void release_pinned(void* memory) noexcept = 0;

  // The handle of a new order of execution (a cudaStream_t), or nullptr where calls have finished
  // when they return.
  virtual std::shared_ptr<void> make_stream() = 0;
  // What is issued to `stream` from here on comes behind all that has been issued to `other`. If
  // that is being recorded, `stream` is too; a recorded stream cannot wait for one that is not.
  virtual void wait_for(void* /*stream*/, void* /*other*/) {}
  // `host` is not pinned. Both wait: it may be used again when copy_in returns, and is complete
  // when copy_out does.
  virtual void copy_in(void* stream, void* to, const void* host, size_t bytes) = 0;
  virtual void copy_out(void* stream, void* host, const void* from, size_t bytes) = 0;
  // From pinned memory, which is read until the stream is synchronised.
  virtual void copy_in_async(void* stream, void* to, const void* pinned, size_t bytes) = 0;
  // From device to device.
  virtual void copy(void* stream, void* to, const void* from, size_t bytes) = 0;
  virtual void zero(void* stream, void* memory, size_t bytes) = 0;
  // Fills memory with NaNs: tests see what a kernel did not write.
  virtual void poison(void* stream, void* memory, size_t bytes) = 0;
  // Waits for everything that was issued. Throws what went wrong there.
  virtual void synchronize(void* stream) = 0;
  // The same before the end of a stream: what went wrong is not said here.
  virtual void finish(void*) noexcept {}

  // Recording (CUDA graphs): between the two calls, work that is issued is noted instead of done.
  // Nothing may wait or allocate meanwhile. end_recording gives what replay() issues as one, or
  // nullptr when it is to be dropped; throws what spoilt it. Where can_record() is false, there is
  // none of it.
  virtual bool can_record() const { return false; }
  virtual void begin_recording(void*) {}
  virtual std::shared_ptr<void> end_recording(void*, bool /*drop*/) { return nullptr; }
  virtual void replay(void*, void*) {}
};

// Those that this build has.
std::shared_ptr<Runtime> make_cpu_runtime();
namespace simt {
std::shared_ptr<Runtime> make_runtime();
}
namespace gpu {
// Throws InputError when there is no driver, it is too old, no device, or no code for this one.
std::shared_ptr<Runtime> make_runtime();
}  // namespace gpu

}  // namespace tessera
