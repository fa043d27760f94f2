// Which element type each part of the computation uses. A value, given to the model. Only `master`
// is read today, where all four agree: f32, or f64 for the oracle; bf16 storage needs the others.
#pragma once

#include "core/dtype.h"

namespace tessera {

struct Precision {
  DType storage = DType::f32;     // activations in memory
  DType compute = DType::f32;     // operands of the matrix products
  DType accumulate = DType::f32;  // sums, statistics, gradients of parameters
  DType master = DType::f32;      // parameters, moments; what model.safetensors holds

  static Precision f32() { return {}; }
  // The oracle: everything in double.
  static Precision f64() { return {DType::f64, DType::f64, DType::f64, DType::f64}; }
};

}  // namespace tessera
