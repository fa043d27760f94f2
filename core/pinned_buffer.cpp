#include "core/pinned_buffer.h"

#include <algorithm>

namespace tessera {

PinnedBuffer::PinnedBuffer(std::shared_ptr<Device> device, size_t bytes) : bytes_(bytes) {
  void* memory = device->runtime().allocate_pinned(std::max<size_t>(bytes, 1));
  if (memory == nullptr)
    throw OutOfMemory(concat("out of page-locked memory: requested ", bytes, " bytes"));
  memory_ = {static_cast<std::byte*>(memory),
             [device](std::byte* used) { device->runtime().release_pinned(used); }};
}

void PinnedBuffer::copy_to(Stream& stream, Tensor& tensor) const {
  ENSURE(tensor.bytes() <= bytes_, "copy of ", bytes_, " bytes into ", tensor.shape(), ' ',
         name_of(tensor.dtype()));
  if (tensor.bytes() > 0)
    stream.device().runtime().copy_in_async(stream.native(), tensor.raw(), memory_.get(),
                                            tensor.bytes());
}

}  // namespace tessera
