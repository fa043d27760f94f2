#include "apps/image.h"
#include "tests/fuzz/target.h"

using namespace tessera;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return fuzz::try_input([&] {
    const int channels = size % 2 ? 1 : 3;
    const Image image = parse_image(fuzz::bytes(data, size), channels, "input");
    const size_t count = size_t(image.width) * size_t(image.height) * size_t(channels);
    ENSURE(image.pixels.size() == count, count, " bytes");
  });
}
