// The mainloops of the CUDA convolutions, which tests run one after the other.
#pragma once

#include "kernels/kernels.h"

namespace tessera {

// Plain f32, tensor cores in tf32 and in bf16.
struct Path {
  const char* name;
  DType dtype;
  Math math;
};
inline constexpr Path kPaths[] = {{"f32", DType::f32, Math::f32},
                                  {"tf32", DType::f32, Math::tf32},
                                  {"bf16", DType::bf16, Math::f32}};

}  // namespace tessera
