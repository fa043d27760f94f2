// Host memory that a device reads by itself while the CPU goes on: where batches wait for their
// copy to a GPU. Page-locked there, plain memory on the CPU.
#pragma once

#include <span>

#include "core/tensor.h"

namespace tessera {

class PinnedBuffer {
 public:
  // Uninitialised. Throws OutOfMemory when there is not enough memory.
  PinnedBuffer(std::shared_ptr<Device> device, size_t bytes);

  std::span<std::byte> bytes() const;

  // Copies the first tensor.bytes() bytes into `tensor`, which is on the buffer's device. The
  // buffer must stay as it is until stream.synchronize(); its destructor waits.
  void copy_to(Stream& stream, Tensor& tensor) const;

 private:
  struct Memory;
  std::shared_ptr<Memory> memory_;
};

}  // namespace tessera
