#include "core/safetensors.h"

#include "tests/fuzz/target.h"

using namespace tessera;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return fuzz::try_input([&] {
    const auto content = fuzz::bytes(data, size);
    const SafeTensors file = SafeTensors::parse({content.begin(), content.end()}, "input");
    size_t bytes = 0;
    for (const std::string& name : file.names()) {
      shape_text(file.at(name).shape);
      for (const std::byte byte : file.at(name).data) bytes += byte <= std::byte{255};
    }
    ENSURE(bytes < size, bytes, " of ", size);  // all data, and the length of the header besides
  });
}
