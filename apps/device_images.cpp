#include "apps/device_images.h"

#include <algorithm>
#include <exception>

namespace tessera {
namespace {

constexpr int64_t kChunk = 2048;  // images resized and copied at a time

void read_images(const Dataset& data, int64_t first, int64_t count, int64_t bytes, uint8_t* out) {
  std::exception_ptr error;  // none may leave the parallel region
#pragma omp parallel for schedule(dynamic, 64)
  for (int64_t i = 0; i < count; ++i) try {
      data.train_image(first + i, out + i * bytes);
    } catch (...) {
#pragma omp critical
      error = std::current_exception();
    }
  if (error) std::rethrow_exception(error);
}

}  // namespace

Tensor images_on_device(Stream& stream, const Dataset& data, int64_t size, int64_t channels) {
  const int64_t count = data.train_size(), bytes = size * size * channels;
  Device& device = stream.device();
  if (device.type() == DeviceType::cpu) return {};
  if (size_t(count) * size_t(bytes) > device.runtime().free_bytes() / 2) return {};
  device.use_threads();
  Tensor images;
  try {
    images = Tensor::empty(stream, {count, size, size, channels}, DType::u8);
  } catch (const OutOfMemory&) {  // others use the GPU, too
    return {};
  }
  std::vector<uint8_t> chunk(size_t(std::min(kChunk, count) * bytes));
  for (int64_t first = 0; first < count; first += kChunk) {
    const int64_t n = std::min(kChunk, count - first);
    read_images(data, first, n, bytes, chunk.data());
    images.slice(first * bytes, {n * bytes})
        .copy_from(stream, std::as_bytes(std::span(chunk).first(size_t(n * bytes))));
  }
  return images;
}

}  // namespace tessera
