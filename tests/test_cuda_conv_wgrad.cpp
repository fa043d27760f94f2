// The filters' gradients of 3x3 convolutions in bf16, which a block adds up tile by tile of pixels.
#include <catch2/catch.hpp>

#include "core/simt/options.h"
#include "tests/op_runner.h"

using namespace tessera;

TEST_CASE("a filter's gradient is added where there is one tile of pixels", "[cuda][small]") {
  // No parts: a block reads the gradient itself, and of the last tap's channels no more than there
  // are. Its memory is a multiple of 512 bytes, so that AddressSanitizer knows where it ends.
  const Shape x{1, 4, 8, 40}, w{16, 3, 3, 40};
  for (const int capability : {80, 90}) {
    simt::Options options;
    options.profile = simt::profile_of(capability);
    const simt::ScopedOptions scope(options);
    Stream stream(poisoned(DeviceType::simt));
    const auto input = [&](const char* name, const Shape& shape, DType dtype) {
      return tensor_of(stream, draw(Numbers::Integers, name, 0, shape), dtype);
    };
    const Tensor image = input("x", x, DType::bf16), dy = input("dy", {1, 4, 8, 16}, DType::bf16);
    Tensor dw = Tensor::empty(stream, w, DType::f32), sum = input("dw", w, DType::f32);
    const Values before = values_of(stream, sum);
    conv2d_bwd_weight(stream, {1, 1, 1}, image, dy, {dw}, {});
    conv2d_bwd_weight(stream, {1, 1, 1}, image, dy, {sum, GradMode::Accumulate}, {});
    const Values alone = values_of(stream, dw), added = values_of(stream, sum);
    for (size_t i = 0; i < alone.data.size(); ++i)
      REQUIRE(added.data[i] == before.data[i] + alone.data[i]);
  }
}

TEST_CASE("filters' gradients of more tiles of pixels than stages", "[cuda][slow]") {
  // Six tiles a part, of which not every part begins with the ring's first stage.
  const Shape x{9, 9, 33, 136}, w{136, 3, 3, 136};
  const auto gradient = [&](Stream& stream, DType storage) {
    const DType sums = storage == DType::f64 ? DType::f64 : DType::f32;
    const Tensor image = tensor_of(stream, draw(Numbers::Integers, "x", 0, x), storage),
                 dy = tensor_of(stream, draw(Numbers::Integers, "dy", 0, x), storage);
    Tensor dw = Tensor::empty(stream, w, sums);
    conv2d_bwd_weight(stream, {1, 1, 1}, image, dy, {dw}, {});
    return values_of(stream, dw);
  };
  Stream oracle(poisoned_cpu());
  const Values right = gradient(oracle, DType::f64);
  for (const int capability : {80, 90}) {
    simt::Options options;
    options.profile = simt::profile_of(capability);
    options.trap_uninitialised = true;
    const simt::ScopedOptions scope(options);
    Stream stream(poisoned(DeviceType::simt));
    CHECK(difference(gradient(stream, DType::bf16), right, 0) == "");
  }
}
