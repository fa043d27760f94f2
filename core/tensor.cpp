#include "core/tensor.h"

#include <algorithm>

namespace tessera {

Tensor Tensor::empty(Stream& stream, const Shape& shape, DType dtype) {
  size_t bytes;
  ENSURE(!__builtin_mul_overflow(shape.numel(), size_of(dtype), &bytes), "too many bytes: ", shape,
         ' ', name_of(dtype));
  Tensor tensor;
  tensor.shape_ = shape;
  tensor.dtype_ = dtype;
  tensor.buffer_ = stream.allocate(bytes);
  if (stream.device().pool()->poison())
    stream.device().runtime().poison(stream.native(), tensor.raw(), tensor.bytes());
  return tensor;
}

Tensor Tensor::zeros(Stream& stream, const Shape& shape, DType dtype) {
  Tensor tensor = empty(stream, shape, dtype);
  tensor.zero(stream);
  return tensor;
}

Tensor Tensor::reshape(const Shape& shape) const {
  ENSURE(shape.numel() == numel(), "reshape of ", shape_, " to ", shape);
  Tensor tensor = *this;
  tensor.shape_ = shape;
  return tensor;
}

Tensor Tensor::slice(int64_t first, const Shape& shape) const {
  ENSURE(first >= 0 && first <= numel() && shape.numel() <= numel() - first, "slice ", first, " + ",
         shape, " of ", shape_);
  Tensor tensor = *this;
  tensor.shape_ = shape;
  tensor.offset_ += size_t(first) * size_of(dtype_);
  return tensor;
}

void Tensor::copy_from(Stream& stream, std::span<const std::byte> host) {
  ENSURE(host.size() == bytes(), "copy of ", host.size(), " bytes into ", shape_, ' ',
         name_of(dtype_));
  if (!host.empty())
    stream.device().runtime().copy_in(stream.native(), raw(), host.data(), host.size());
}

void Tensor::copy_to(Stream& stream, std::span<std::byte> host) const {
  ENSURE(host.size() == bytes(), "copy of ", shape_, ' ', name_of(dtype_), " into ", host.size(),
         " bytes");
  if (!host.empty())
    stream.device().runtime().copy_out(stream.native(), host.data(), raw(), host.size());
}

std::vector<float> Tensor::to_floats(Stream& stream) const {
  if (dtype_ == DType::f32) return to_vector<float>(stream);
  const std::vector<bf16> stored = to_vector<bf16>(stream);
  std::vector<float> values(stored.size());
  std::ranges::transform(stored, values.begin(), [](bf16 x) { return to_float(x); });
  return values;
}

void Tensor::zero(Stream& stream) {
  if (bytes() > 0) stream.device().runtime().zero(stream.native(), raw(), bytes());
}

}  // namespace tessera
