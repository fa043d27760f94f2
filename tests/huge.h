// Tests of indices past 2^31: tensors that are address space alone, of which a launch's last blocks
// touch the end, and numbers that follow from an element's index.
#pragma once

#include <cmath>
#include <string>

#include "core/simt/options.h"
#include "kernels/kernels.h"

namespace tessera {

inline constexpr int64_t k2e31 = int64_t{1} << 31;

// A stream of the host model. While it lives, large tensors are only reserved and hold zeros, and
// only the last blocks of a grid run.
class HugeStream : public Stream {
 public:
  // So that the partial sums of blocks that did not run, too, are zeros, and a sum is that of the
  // elements that the last blocks saw.
  static constexpr size_t kReserveSums = 4096;

  explicit HugeStream(uint64_t blocks = 4, size_t reserve_from = size_t{1} << 28)
      : Stream(Device::open(DeviceType::simt, 2)), scope_(options(blocks, reserve_from)) {}

 private:
  static simt::Options options(uint64_t blocks, size_t reserve_from) {
    simt::Options o = simt::options();
    o.first_block = simt::Options::kFromTheEnd;
    o.blocks = blocks;
    o.reserve_from = reserve_from;
    return o;
  }
  simt::ScopedOptions scope_;
};

// A tensor of f32, bf16 or u8 whose element i is number(i) wherever it was filled, and 0 elsewhere.
class Huge {
 public:
  Huge(Stream& stream, const Shape& shape, DType dtype)
      : tensor(Tensor::empty(stream, shape, dtype)), salt_(next_salt()) {}

  // 1 .. 8 or -1 .. -8 (0 .. 255 of u8): what an index of the wrong element gives differs, or is
  // zero. Sums of products are exact.
  double number(int64_t i) const {
    const uint64_t bits = (uint64_t(i) + salt_) * 0x9E3779B97F4A7C15 >> 40;
    if (tensor.dtype() == DType::u8) return double(bits % 256);
    return double(1 + bits % 8) * (bits & 8 ? 1 : -1);
  }
  // Elements first .. last-1, the last of all unless told.
  void fill(int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) set(i, number(i));
  }
  void fill_from(int64_t first) { fill(first, tensor.numel()); }
  void fill() { fill_from(0); }

  void set(int64_t i, double value) {
    if (tensor.dtype() == DType::bf16)
      tensor.data<bf16>()[i] = to_bf16(float(value));
    else if (tensor.dtype() == DType::u8)
      tensor.data<uint8_t>()[i] = uint8_t(value);
    else
      tensor.data<float>()[i] = float(value);
  }
  // What is there now; the stream must be synchronised.
  double at(int64_t i) const {
    if (tensor.dtype() == DType::u8) return tensor.data<uint8_t>()[i];
    return tensor.dtype() == DType::bf16 ? to_float(tensor.data<bf16>()[i])
                                         : tensor.data<float>()[i];
  }
  // A value as the tensor can hold it.
  double rounded(double value) const {
    return tensor.dtype() == DType::bf16 ? to_float(to_bf16(float(value))) : float(value);
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

// The gradient of a test: holds numbers where it was filled, to which an accumulating kernel adds.
struct HugeGrad : Huge {
  HugeGrad(Stream& stream, const Shape& shape, DType dtype, GradMode mode)
      : Huge(stream, shape, dtype), mode(mode) {}
  double before(int64_t i) const { return mode == GradMode::Accumulate ? number(i) : 0; }
  Grad grad() const { return {tensor, mode}; }
  GradMode mode;
};

inline double exact_gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }
inline double exact_gelu_slope(double x) {
  return 0.5 * std::erfc(-x / std::sqrt(2.0)) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI);
}

}  // namespace tessera
