// Which element type each part of the computation uses. A value: it travels with the model.
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
