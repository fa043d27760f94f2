// Gzipped IDX files. Every other mutation is one of what is packed: a changed bit of the file
// itself mostly gives a wrong checksum.
#include <algorithm>
#include <vector>

#include "apps/idx.h"
#include "tests/fuzz/target.h"
#include "tests/idx_files.h"

using namespace tessera;

namespace {

// The first max_size bytes, or fewer, of what is in the file.
std::vector<uint8_t> unpacked(uint8_t* data, size_t size, size_t max_size) {
  std::vector<uint8_t> content(max_size);
  z_stream stream{};
  constexpr int kGzip = 16;
  ENSURE(inflateInit2(&stream, MAX_WBITS + kGzip) == Z_OK, "zlib does not start");
  stream.next_in = data;
  stream.avail_in = uInt(size);
  stream.next_out = content.data();
  stream.avail_out = uInt(max_size);
  inflate(&stream, Z_SYNC_FLUSH);
  content.resize(stream.total_out);
  inflateEnd(&stream);
  return content;
}

}  // namespace

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  if (seed % 2 == 0) return LLVMFuzzerMutate(data, size, max_size);
  std::vector<uint8_t> content = unpacked(data, size, max_size);
  const size_t before = content.size();
  content.resize(max_size);
  content.resize(LLVMFuzzerMutate(content.data(), before, max_size));
  const std::string file = gzip({content.begin(), content.end()});
  if (file.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  std::ranges::copy(file, data);
  return file.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return fuzz::try_input([&] {
    const IdxImages images = parse_idx(fuzz::bytes(data, size), "input");
    const uint64_t count = uint64_t(images.n) * uint64_t(images.h * images.w);
    ENSURE(images.pixels.size() == count, count, " pixels");
  });
}
