#include "apps/idx.h"

#include "tests/fuzz/target.h"

using namespace tessera;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return fuzz::try_input([&] {
    const IdxImages images = parse_idx(fuzz::bytes(data, size), "input");
    const uint64_t count = uint64_t(images.n) * uint64_t(images.h * images.w);
    ENSURE(images.pixels.size() == count, count, " pixels");
  });
}
