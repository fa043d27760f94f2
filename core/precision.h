// Which element type each part of the computation uses. A value, given to the model.
#pragma once

#include <string>

#include "core/dtype.h"

namespace tessera {

// How tensor cores may round the operands of f32 matrix products: not at all, or to TF32's 10 bits
// of mantissa.
enum class Math { f32, tf32 };

struct Precision {
  DType storage = DType::f32;  // activations, and the copies of the filters that products read
  Math math = Math::f32;       // of products of f32; the stream's, see Stream::math
  DType master = DType::f32;   // parameters, gradients, moments, sums; what model.safetensors holds

  static Precision f32() { return {}; }
  static Precision tf32() { return {DType::f32, Math::tf32, DType::f32}; }
  static Precision bf16() { return {DType::bf16, Math::f32, DType::f32}; }
  // The oracle: everything in double.
  static Precision f64() { return {DType::f64, Math::f32, DType::f64}; }
};

// "f32", "tf32", "bf16"; throws UsageError for anything else.
Precision precision_of(const std::string& name);
// What --precision `name` means on a device of this kind and compute capability (0: none): "auto"
// is bf16 where tensor cores multiply it, else f32. Throws UsageError for what the device lacks.
std::string resolve_precision(const std::string& name, const std::string& device, int capability);

}  // namespace tessera
