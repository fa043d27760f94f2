// A tensor: shape, element type, and a place in a shared buffer. Always contiguous; copying a
// Tensor copies the handle, not the elements. Images are NHWC, filters KRSC; NCHW and OIHW exist
// only in files.
#pragma once

#include <span>
#include <vector>

#include "core/device.h"
#include "core/dtype.h"
#include "core/shape.h"

namespace tessera {

class Tensor {
 public:
  Tensor() = default;  // undefined: stands for "none" where an argument is optional

  // Uninitialised elements.
  static Tensor empty(Stream& stream, const Shape& shape, DType dtype = DType::f32);
  static Tensor zeros(Stream& stream, const Shape& shape, DType dtype = DType::f32);
  template <class T>
  static Tensor from(Stream& stream, const Shape& shape, std::span<const T> values) {
    Tensor tensor = empty(stream, shape, dtype_of<T>);
    tensor.copy_from(stream, std::as_bytes(values));
    return tensor;
  }

  bool defined() const { return buffer_ != nullptr; }
  explicit operator bool() const { return defined(); }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t numel() const { return shape_.numel(); }
  DType dtype() const { return dtype_; }
  size_t bytes() const { return size_t(numel()) * size_of(dtype_); }
  // Whether no other tensor is in the same buffer.
  bool alone() const { return buffer_.use_count() == 1; }

  // The elements, on the tensor's device. Throws when T is not the dtype.
  template <class T>
  T* data() {
    check_type(dtype_of<T>);
    return reinterpret_cast<T*>(raw());
  }
  template <class T>
  const T* data() const {
    check_type(dtype_of<T>);
    return reinterpret_cast<const T*>(raw());
  }
  std::byte* raw() {
    ENSURE(defined(), "the tensor is undefined");
    return buffer_->data() + offset_;
  }
  const std::byte* raw() const { return const_cast<Tensor*>(this)->raw(); }

  // The same elements under another shape of as many elements.
  Tensor reshape(const Shape& shape) const;
  // `shape` elements from element `first` on, sharing the buffer: a parameter in its arena.
  Tensor slice(int64_t first, const Shape& shape) const;

  // Copies to and from host memory; the stream is synchronised. Sizes must match.
  void copy_from(Stream& stream, std::span<const std::byte> host);
  void copy_to(Stream& stream, std::span<std::byte> host) const;
  template <class T>
  std::vector<T> to_vector(Stream& stream) const {
    check_type(dtype_of<T>);
    std::vector<T> values(static_cast<size_t>(numel()));
    copy_to(stream, std::as_writable_bytes(std::span(values)));
    return values;
  }
  // The elements of an f32 or bf16 tensor as floats.
  std::vector<float> to_floats(Stream& stream) const;
  void zero(Stream& stream);

 private:
  void check_type(DType wanted) const {
    ENSURE(defined(), "the tensor is undefined");
    ENSURE(dtype_ == wanted, "the tensor is ", name_of(dtype_), ", not ", name_of(wanted));
  }

  Shape shape_;
  DType dtype_ = DType::f32;
  std::shared_ptr<Buffer> buffer_;
  size_t offset_ = 0;  // bytes
};

}  // namespace tessera
