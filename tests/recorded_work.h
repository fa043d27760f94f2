// What tests record, or issue beside a stream.
#pragma once

#include <vector>

#include "kernels/kernels.h"

namespace tessera {

constexpr int64_t kSize = 1000;

inline std::vector<float> all(float value) { return std::vector<float>(kSize, value); }

// y = 4 x, by way of a temporary tensor.
inline void quadruple(Stream& stream, const Tensor& x, Tensor& y) {
  Tensor twice = Tensor::empty(stream, x.shape());
  add_fwd(stream, x, x, twice);
  add_fwd(stream, twice, twice, y);
}

}  // namespace tessera
