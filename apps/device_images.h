// The training images in device memory, so that a step copies nothing but sample numbers.
#pragma once

#include "apps/dataset.h"
#include "core/tensor.h"

namespace tessera {

// All training images, u8 [M,size,size,channels]. Undefined on the CPU, where the loader reads them
// as they are needed, and when they would take more than half of the device's free memory.
Tensor images_on_device(Stream& stream, const Dataset& data, int64_t size, int64_t channels);

}  // namespace tessera
