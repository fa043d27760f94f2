// Element types of a tensor.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace tessera {

enum class DType : uint8_t { f32, bf16, f64, u8, i32, i64 };

// The upper half of a float. Storage only: arithmetic is done in float.
struct bf16 {
  uint16_t bits;
};

constexpr float to_float(bf16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
// To the nearest, ties to even; NaN stays NaN.
constexpr bf16 to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return {uint16_t(bits >> 16 | 0x40)};
  return {uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::u8:
      return 1;
    case DType::bf16:
      return 2;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f64:
    case DType::i64:
      return 8;
  }
  return 0;
}

constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::f64:
      return "f64";
    case DType::u8:
      return "u8";
    case DType::i32:
      return "i32";
    case DType::i64:
      return "i64";
  }
  return "?";
}

// The type of parameters and their gradients, of statistics and losses where activations are stored
// as `storage`: what is added to a sum in bf16 is soon lost.
constexpr DType master_of(DType storage) { return storage == DType::bf16 ? DType::f32 : storage; }

// dtype_of<float> == DType::f32, and so on.
template <class T>
inline constexpr DType dtype_of =
    [] { static_assert(sizeof(T) == 0, "no DType for this C++ type"); }();
template <>
inline constexpr DType dtype_of<float> = DType::f32;
template <>
inline constexpr DType dtype_of<bf16> = DType::bf16;
template <>
inline constexpr DType dtype_of<double> = DType::f64;
template <>
inline constexpr DType dtype_of<uint8_t> = DType::u8;
template <>
inline constexpr DType dtype_of<int32_t> = DType::i32;
template <>
inline constexpr DType dtype_of<int64_t> = DType::i64;

}  // namespace tessera
