// Bit-equality with Pillow's BILINEAR on the samples of tests/golden/make_images.py: larger,
// smaller, one side only, odd sizes, extreme values.
#include "apps/resize.h"

#include <catch2/catch.hpp>
#include <filesystem>

#include "core/check.h"
#include "core/safetensors.h"
#include "tests/paths.h"

using namespace tessera;

namespace {

std::vector<uint8_t> bytes_of(const SafeTensor& tensor) {
  const auto* first = reinterpret_cast<const uint8_t*>(tensor.data.data());
  return {first, first + tensor.data.size()};
}

}  // namespace

TEST_CASE("resize: Pillow's bytes", "[resize]") {
  const SafeTensors file = SafeTensors::read(std::filesystem::path(test_dir()) / "golden" /
                                             "images" / "expected.safetensors");
  constexpr int kCases = 15;
  for (int number = 0; number < kCases; ++number) {
    const std::string name = concat("resize.", number);
    const SafeTensor &in = file.at(name + ".in"), &out = file.at(name + ".out");
    CAPTURE(name, in.shape, out.shape);
    const std::vector<uint8_t> source = bytes_of(in);
    std::vector<uint8_t> resized(out.data.size());
    resize_bilinear(source.data(), in.shape[0], in.shape[1], in.shape[2], out.shape[0],
                    out.shape[1], resized.data());
    CHECK(resized == bytes_of(out));
  }
  CHECK_FALSE(file.contains(concat("resize.", kCases, ".in")));
}

TEST_CASE("resize: a constant image stays constant at any size", "[resize]") {
  for (const uint8_t value : {0, 1, 127, 255}) {
    for (const int size : {1, 2, 7, 30, 31, 64, 200}) {
      const std::vector<uint8_t> source(30 * 31 * 3, value);
      std::vector<uint8_t> resized(static_cast<size_t>(size) * size * 3, 77);
      Resizer(30, 31, 3, size, size).resize(source.data(), resized.data());
      CAPTURE(value, size);
      CHECK(resized == std::vector<uint8_t>(resized.size(), value));
    }
  }
}

TEST_CASE("resize: a Resizer can be used again", "[resize]") {
  const Resizer resizer(2, 2, 1, 3, 3);
  const std::vector<uint8_t> a = {0, 100, 200, 44}, b = {9, 9, 9, 9};
  std::vector<uint8_t> first(9), other(9), again(9);
  resizer.resize(a.data(), first.data());
  resizer.resize(b.data(), other.data());
  resizer.resize(a.data(), again.data());
  CHECK(first == again);
  CHECK(other == std::vector<uint8_t>(9, 9));
}

TEST_CASE("resize: empty sizes are refused", "[resize]") {
  CHECK_THROWS_AS(Resizer(0, 2, 1, 3, 3), Error);
  CHECK_THROWS_AS(Resizer(2, 2, 1, 3, 0), Error);
}
