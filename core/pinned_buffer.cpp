#include "core/pinned_buffer.h"

#include <algorithm>
#include <vector>

namespace tessera {

// CUDA does not promise that freeing it waits for the copies, and to wait for all of the device
// would spoil what other threads record.
struct PinnedBuffer::Memory {
  std::shared_ptr<Device> device;
  std::byte* first;
  size_t bytes;
  std::vector<std::weak_ptr<void>> streams;  // that have copied from it

  ~Memory() {
    for (const auto& used : streams)
      if (const auto stream = used.lock()) device->runtime().finish(stream.get());
    device->runtime().release_pinned(first);
  }
};

PinnedBuffer::PinnedBuffer(std::shared_ptr<Device> device, size_t bytes) {
  void* const memory = device->runtime().allocate_pinned(std::max<size_t>(bytes, 1));
  if (memory == nullptr)
    throw OutOfMemory(concat("out of page-locked memory: requested ", bytes, " bytes"));
  memory_.reset(new Memory{std::move(device), static_cast<std::byte*>(memory), bytes, {}});
}

std::span<std::byte> PinnedBuffer::bytes() const { return {memory_->first, memory_->bytes}; }

void PinnedBuffer::copy_to(Stream& stream, Tensor& tensor) const {
  ENSURE(tensor.bytes() <= memory_->bytes, "copy of ", memory_->bytes, " bytes into ",
         tensor.shape(), ' ', name_of(tensor.dtype()));
  if (tensor.bytes() == 0) return;
  const auto is_known = [&](const auto& used) { return used.lock().get() == stream.native(); };
  if (std::ranges::none_of(memory_->streams, is_known))
    memory_->streams.push_back(stream.native_ptr());
  stream.device().runtime().copy_in_async(stream.native(), tensor.raw(), memory_->first,
                                          tensor.bytes());
}

}  // namespace tessera
