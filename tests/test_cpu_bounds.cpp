// No operation of the CPU writes past its tensors or scratch memory. AddressSanitizer does not see
// what code that a library generates at run time does.
#include <catch2/catch.hpp>
#include <cstring>

#include "tests/op_runner.h"

using namespace tessera;

namespace {

// Blocks with a margin before and behind each, which are looked at when the block is given back.
class GuardedMemory : public MemorySource {
 public:
  std::shared_ptr<Buffer> allocate(size_t bytes) override {
    const size_t all = (bytes + 63) / 64 * 64 + 2 * kMargin;
    auto* const block = static_cast<std::byte*>(std::aligned_alloc(64, all));
    if (!block) throw std::bad_alloc();
    std::memset(block, kMark, all);
    std::memset(block + kMargin, 0xFF, bytes);
    return {new Buffer(block + kMargin, bytes), [this, block, all](Buffer* buffer) {
              for (size_t i = 0; i < all; ++i)
                if (i < kMargin || i >= kMargin + buffer->bytes())
                  overruns_ += block[i] != std::byte(kMark);
              std::free(block);
              delete buffer;
            }};
  }
  int64_t overruns() const { return overruns_; }  // bytes

 private:
  static constexpr size_t kMargin = 4096;
  static constexpr int kMark = 0x5A;

  int64_t overruns_ = 0;
};

}  // namespace

TEST_CASE("no operation of the CPU writes past its memory", "[ops][bf16][unthreaded]") {
  GuardedMemory memory;
  int64_t before = 0;
  for (const OpCase& c : all_cases().tests)
    for (const DType storage : {DType::f32, DType::bf16}) {
      INFO(c.op << ' ' << c.name << ' ' << name_of(storage));
      Stream stream(Device::open(DeviceType::cpu, 2));
      for (const GradMode mode : {GradMode::Overwrite, GradMode::Accumulate}) {
        const Stream::MemoryFrom guarded(stream, &memory);
        run(stream, c, c.apply, storage, Numbers::Normal, mode);
      }
      CHECK(memory.overruns() == before);
      before = memory.overruns();
    }
}
