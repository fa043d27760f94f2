// PNG images. The checksums of most inputs are set right after a mutation, or libpng would look at
// nothing behind the first of them.
#include <zlib.h>

#include <algorithm>

#include "apps/image.h"
#include "tests/fuzz/target.h"
#include "tests/idx_files.h"

using namespace tessera;

namespace {

void set_checksums(uint8_t* data, size_t size) {
  constexpr size_t kSignature = 8, kFrame = 12;  // a chunk's length, type and checksum
  for (size_t at = kSignature; size - std::min(at, size) >= kFrame;) {
    const size_t length =
        size_t{data[at]} << 24 | data[at + 1] << 16 | data[at + 2] << 8 | data[at + 3];
    if (length > size - at - kFrame) return;
    const std::string sum = big_endian(uint32_t(crc32(0, data + at + 4, uInt(length + 4))));
    std::copy(sum.begin(), sum.end(), data + at + 8 + length);
    at += kFrame + length;
  }
}

}  // namespace

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  size = LLVMFuzzerMutate(data, size, max_size);
  if (seed % 8 != 0) set_checksums(data, size);
  return size;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return fuzz::try_input([&] {
    const int channels = size % 2 ? 1 : 3;
    const Image image = parse_image(fuzz::bytes(data, size), channels, "input");
    const size_t count = size_t(image.width) * size_t(image.height) * size_t(channels);
    ENSURE(image.pixels.size() == count, count, " bytes");
  });
}
