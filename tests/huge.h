// Tests of indices past 2^31: tensors that are address space alone, of which a launch's last blocks
// touch the end, and numbers that follow from an element's index.
#pragma once

#include <cmath>
#include <string>

#include "core/simt/options.h"
#include "core/tensor.h"

namespace tessera {

// A stream of the host model. While it lives, large tensors are only reserved and hold zeros, and
// only the last blocks of a grid run.
class HugeStream : public Stream {
 public:
  explicit HugeStream(uint64_t blocks = 4)
      : Stream(Device::open(DeviceType::simt, 2)), scope_(options(blocks)) {}

 private:
  static simt::Options options(uint64_t blocks) {
    simt::Options o = simt::options();
    o.first_block = simt::Options::kFromTheEnd;
    o.blocks = blocks;
    o.reserve_from = size_t{1} << 28;
    return o;
  }
  simt::ScopedOptions scope_;
};

// A tensor of f32 or bf16 whose element i is number(i) wherever it was filled, and 0 elsewhere.
class Huge {
 public:
  Huge(Stream& stream, const Shape& shape, DType dtype)
      : tensor(Tensor::empty(stream, shape, dtype)), salt_(next_salt()) {}

  // 1 .. 8 or -1 .. -8: what an index of the wrong element gives differs, or is zero.
  double number(int64_t i) const {
    const uint64_t bits = (uint64_t(i) + salt_) * 0x9E3779B97F4A7C15 >> 40;
    return double(1 + bits % 8) * (bits & 8 ? 1 : -1);
  }
  // Elements first .. last-1, the last of all unless told.
  void fill(int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) set(i, number(i));
  }
  void fill_from(int64_t first) { fill(first, tensor.numel()); }

  void set(int64_t i, double value) {
    if (tensor.dtype() == DType::bf16)
      tensor.data<bf16>()[i] = to_bf16(float(value));
    else
      tensor.data<float>()[i] = float(value);
  }
  // What is there now; the stream must be synchronised.
  double at(int64_t i) const {
    return tensor.dtype() == DType::bf16 ? to_float(tensor.data<bf16>()[i])
                                         : tensor.data<float>()[i];
  }
  // Index of an element of an image.
  int64_t index(int64_t n, int64_t h, int64_t w, int64_t c) const {
    return ((n * tensor.dim(1) + h) * tensor.dim(2) + w) * tensor.dim(3) + c;
  }

  // "" if elements first .. last-1 equal expected(i) within tolerance * |expected|, else one that
  // does not.
  template <class Expected>
  std::string difference(int64_t first, int64_t last, double tolerance, Expected expected) const {
    for (int64_t i = first; i < last; ++i) {
      const double wanted = expected(i);
      if (!(std::abs(at(i) - wanted) <= tolerance * std::abs(wanted)))
        return concat("element ", i, " of ", tensor.shape(), " is ", at(i), ", expected ", wanted);
    }
    return "";
  }

  Tensor tensor;

 private:
  static uint64_t next_salt() {
    static uint64_t count = 0;
    return ++count * 1000003;
  }
  uint64_t salt_;
};

}  // namespace tessera
