// safetensors files. Most mutations are of the header's text, whose length is set right: else it
// would end in the wrong place, and nothing behind that would be looked at.
#include "core/safetensors.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "tests/fuzz/target.h"

using namespace tessera;

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  uint64_t length = 0;
  if (seed % 4 == 0 || size < sizeof length) return LLVMFuzzerMutate(data, size, max_size);
  std::memcpy(&length, data, sizeof length);
  uint8_t* text = data + sizeof length;
  uint8_t* end = data + size;
  length = std::min<uint64_t>(length, size_t(end - text));
  const std::vector<uint8_t> behind(text + length, end);
  const size_t room = max_size - sizeof length - behind.size();
  if (room == 0) return LLVMFuzzerMutate(data, size, max_size);
  length = LLVMFuzzerMutate(text, length, room);
  std::memcpy(data, &length, sizeof length);
  std::ranges::copy(behind, text + length);
  return sizeof length + length + behind.size();
}

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
