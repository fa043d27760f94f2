// Shapes and tensors: what they hold, and that wrong sizes and types are refused with both values.
#include "core/tensor.h"

#include <catch2/catch.hpp>
#include <cmath>

#include "tests/temp_dir.h"

using namespace tessera;
using Catch::Contains;

namespace {

template <class F>
std::string error_of(F&& call) {
  return message_of<Error>(call);
}

}  // namespace

TEST_CASE("a shape knows its sizes and their product", "[shape]") {
  const Shape shape{2, 3, 5, 7};
  CHECK(shape.rank() == 4);
  CHECK(shape[2] == 5);
  CHECK(shape.numel() == 210);
  CHECK(concat(shape) == "[2,3,5,7]");
  CHECK(Shape{}.numel() == 1);
  CHECK(Shape{3, 0, 2}.numel() == 0);
  CHECK(shape == Shape{2, 3, 5, 7});
  CHECK(!(Shape{2, 3} == Shape{2, 3, 1}));
}

TEST_CASE("a shape refuses what is no shape", "[shape]") {
  CHECK_THAT(error_of([] { Shape{2, -1}; }), Contains("negative: -1"));
  CHECK_THAT(error_of([] { Shape{1, 1, 1, 1, 1}; }), Contains("at most 4 dimensions, not 5"));
  CHECK_THAT(error_of([] { Shape({2, 3})[2]; }), Contains("dimension 2 of a tensor of rank 2"));
  CHECK_THAT(error_of([] { Shape({2, 3})[-1]; }), Contains("dimension -1"));
}

TEST_CASE("sizes that overflow are refused before memory is taken", "[shape][tensor]") {
  constexpr int64_t k31 = int64_t{1} << 31;
  CHECK_THAT(error_of([] { Shape{k31, k31, 2}; }), Contains("too many elements"));
  CHECK(Shape{k31, k31}.numel() == int64_t{1} << 62);

  Stream stream(Device::open(DeviceType::cpu));
  // 2^62 floats are 2^64 bytes, 2^61 doubles too: their count fits, their size does not.
  CHECK_THROWS_AS(Tensor::empty(stream, {k31, k31}), Error);
  CHECK_THROWS_AS(Tensor::empty(stream, {k31, k31 / 2}, DType::f64), Error);
  CHECK_THROWS_AS(Tensor::empty(stream, {k31, k31}, DType::u8), Error);
  CHECK(stream.device().pool()->misses() == 0);
}

TEST_CASE("a tensor copies elements in and out", "[tensor]") {
  Stream stream(Device::open(DeviceType::cpu));
  const std::vector<float> values{1, 2, 3, 4, 5, 6};
  const Tensor tensor = Tensor::from<float>(stream, {2, 3}, values);
  CHECK(tensor.to_vector<float>(stream) == values);
  CHECK(tensor.bytes() == 24);
  CHECK(tensor.dtype() == DType::f32);
  CHECK(Tensor::zeros(stream, {3}, DType::i64).to_vector<int64_t>(stream) ==
        std::vector<int64_t>{0, 0, 0});
  CHECK(Tensor::zeros(stream, {0, 4}).to_vector<float>(stream).empty());

  CHECK_THAT(error_of([&] {
               Tensor::from<float>(stream, {2, 2}, values);
             }),
             Contains("24 bytes into [2,2] f32"));
  std::vector<std::byte> small(23);
  CHECK_THAT(error_of([&] { tensor.copy_to(stream, small); }), Contains("[2,3] f32 into 23 bytes"));
}

TEST_CASE("copying a tensor copies the handle", "[tensor]") {
  Stream stream(Device::open(DeviceType::cpu));
  Tensor tensor = Tensor::zeros(stream, {2});
  const Tensor same = tensor;
  tensor.data<float>()[1] = 5;
  CHECK(same.to_vector<float>(stream) == std::vector<float>{0, 5});
}

TEST_CASE("an element type is checked", "[tensor]") {
  Stream stream(Device::open(DeviceType::cpu));
  const Tensor tensor = Tensor::zeros(stream, {2});
  CHECK_THAT(error_of([&] { tensor.data<double>(); }), Contains("the tensor is f32, not f64"));
  CHECK_THAT(error_of([&] { tensor.to_vector<int32_t>(stream); }), Contains("is f32, not i32"));
  CHECK_THAT(error_of([] { Tensor().data<float>(); }), Contains("the tensor is undefined"));
  CHECK_THAT(error_of([] { Tensor().data<bf16>(); }), Contains("the tensor is undefined"));
  CHECK_THAT(error_of([] { Tensor().raw(); }), Contains("the tensor is undefined"));
  CHECK(!Tensor());
  CHECK(tensor);
}

TEST_CASE("reshape keeps the elements", "[tensor]") {
  Stream stream(Device::open(DeviceType::cpu));
  const Tensor tensor = Tensor::from<float>(stream, {2, 3}, std::vector<float>{1, 2, 3, 4, 5, 6});
  const Tensor other = tensor.reshape({3, 1, 2});
  CHECK(other.shape() == Shape{3, 1, 2});
  CHECK(other.raw() == tensor.raw());
  CHECK_THAT(error_of([&] { tensor.reshape({4, 2}); }), Contains("reshape of [2,3] to [4,2]"));
}

TEST_CASE("a slice shares its part of the buffer and stays inside", "[tensor]") {
  Stream stream(Device::open(DeviceType::cpu));
  Tensor arena = Tensor::zeros(stream, {10});
  Tensor part = arena.slice(4, {2, 3});
  part.data<float>()[0] = 1;
  part.data<float>()[5] = 2;
  CHECK(arena.to_vector<float>(stream) == std::vector<float>{0, 0, 0, 0, 1, 0, 0, 0, 0, 2});
  CHECK(part.slice(5, {1}).to_vector<float>(stream) == std::vector<float>{2});
  CHECK(arena.slice(10, {0}).numel() == 0);

  CHECK_THAT(error_of([&] { arena.slice(5, {2, 3}); }), Contains("slice 5 + [2,3] of [10]"));
  CHECK_THAT(error_of([&] { arena.slice(-1, {2}); }), Contains("slice -1 + [2] of [10]"));
  CHECK_THAT(error_of([&] { part.slice(0, {7}); }), Contains("slice 0 + [7] of [2,3]"));
  CHECK_THROWS_AS(arena.slice(INT64_MAX, {2}), Error);
}

TEST_CASE("a tensor keeps its memory alive and gives it back", "[tensor]") {
  Stream stream(Device::open(DeviceType::cpu));
  Tensor part;
  {
    const Tensor whole = Tensor::zeros(stream, {100});
    part = whole.slice(50, {1});
  }
  CHECK(part.to_vector<float>(stream) == std::vector<float>{0});
  CHECK(stream.device().pool()->bytes_in_use() > 0);
  part = Tensor();
  CHECK(stream.device().pool()->bytes_in_use() == 0);
}

TEST_CASE("poison fills tensors with NaN, in new memory and in used one", "[tensor]") {
  const auto device = Device::open(DeviceType::cpu);
  device->pool()->set_poison(true);
  Stream stream(device);
  for (int round = 0; round < 2; ++round) {
    Tensor tensor = Tensor::empty(stream, {100});
    for (float value : tensor.to_vector<float>(stream)) REQUIRE(std::isnan(value));
    tensor.zero(stream);
  }
  CHECK(device->pool()->misses() == 1);
}

TEST_CASE("a copy has the bytes of its tensor", "[tensor]") {
  Stream stream(Device::open(DeviceType::cpu));
  Tensor t = Tensor::zeros(stream, {3});
  const std::vector<float> two{1, 2}, four(4);
  CHECK_THAT(message_of<Error>([&] { t.copy_from(stream, std::as_bytes(std::span(two))); }),
             Catch::Contains("copy of 8 bytes into [3] f32"));
  CHECK_THAT(message_of<Error>([&] { t.copy_from(stream, std::as_bytes(std::span(four))); }),
             Catch::Contains("copy of 16 bytes into [3] f32"));
}
