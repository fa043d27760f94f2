// Page-locked buffers: copies from them are asynchronous where there is a stream, and waited for.
#include "core/pinned_buffer.h"

#include <algorithm>
#include <catch2/catch.hpp>

#include "tests/temp_dir.h"

using namespace tessera;

namespace {

void fill(const PinnedBuffer& buffer, int value) {
  std::ranges::fill(buffer.bytes(), std::byte(value));
}

std::vector<uint8_t> copies_of(int value, size_t n) { return std::vector<uint8_t>(n, value); }

}  // namespace

TEST_CASE("a copy from a pinned buffer is complete after synchronize", "[pinned]") {
  std::vector<DeviceType> devices{DeviceType::cpu, DeviceType::simt};
  if (has_gpu()) devices.push_back(DeviceType::cuda);
  for (DeviceType type : devices) {
    INFO(name_of(type));
    const auto device = Device::open(type);
    Stream stream(device);
    PinnedBuffer buffer(device, 100);
    REQUIRE(buffer.bytes().size() == 100);
    Tensor all = Tensor::empty(stream, {100}, DType::u8),
           few = Tensor::empty(stream, {7}, DType::u8);
    fill(buffer, 1);
    buffer.copy_to(stream, all);
    stream.synchronize();
    fill(buffer, 2);
    buffer.copy_to(stream, few);
    stream.synchronize();
    fill(buffer, 3);
    CHECK(all.to_vector<uint8_t>(stream) == copies_of(1, 100));
    CHECK(few.to_vector<uint8_t>(stream) == copies_of(2, 7));
    Tensor large = Tensor::empty(stream, {101}, DType::u8);
    CHECK_THROWS_AS(buffer.copy_to(stream, large), Error);
  }
}

TEST_CASE("the host model sees a pinned buffer that is changed too soon", "[pinned]") {
  const auto device = Device::open(DeviceType::simt);
  Stream stream(device);
  PinnedBuffer buffer(device, 64);
  Tensor x = Tensor::empty(stream, {64}, DType::u8);
  fill(buffer, 1);
  buffer.copy_to(stream, x);
  CHECK(*x.data<uint8_t>() != 1);  // not yet
  fill(buffer, 2);                 // the fault
  CHECK(x.to_vector<uint8_t>(stream) == copies_of(2, 64));
}

TEST_CASE("a pinned buffer waits for its copies before it goes", "[pinned]") {
  const auto device = Device::open(DeviceType::simt);
  Stream stream(device);
  Tensor x = Tensor::empty(stream, {64}, DType::u8);
  {
    const PinnedBuffer buffer(device, 64);
    fill(buffer, 5);
    buffer.copy_to(stream, x);
  }
  CHECK(x.to_vector<uint8_t>(stream) == copies_of(5, 64));
}

TEST_CASE("too large a pinned buffer is refused in one line", "[pinned]") {
  const std::string message =
      message_of<InputError>([] { PinnedBuffer(Device::open(DeviceType::simt), size_t{1} << 60); });
  CHECK(message == "out of page-locked memory: requested 1152921504606846976 bytes");
}
