// Sizes of a tensor, at most four of them. Images are [N,H,W,C], filters [K,R,S,C].
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <span>

#include "core/check.h"

namespace tessera {

// How many parts of size b cover a.
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;  // rank 0: one element
  Shape(std::initializer_list<int64_t> sizes) : Shape(std::span(sizes.begin(), sizes.size())) {}
  explicit Shape(std::span<const int64_t> sizes) {
    ENSURE(sizes.size() <= kMaxRank, "a tensor has at most 4 dimensions, not ", sizes.size());
    for (int64_t size : sizes) {
      ENSURE(size >= 0, "a dimension is negative: ", size);
      sizes_[rank_++] = size;
    }
    numel();  // throws when the product overflows
  }

  int rank() const { return rank_; }
  int64_t operator[](int i) const {
    ENSURE(i >= 0 && i < rank_, "dimension ", i, " of a tensor of rank ", rank_);
    return sizes_[i];
  }
  std::span<const int64_t> sizes() const { return {sizes_.data(), size_t(rank_)}; }

  int64_t numel() const {
    int64_t product = 1;
    for (int64_t size : sizes())
      ENSURE(!__builtin_mul_overflow(product, size, &product), "too many elements: ", *this);
    return product;
  }

  bool operator==(const Shape&) const = default;

  // Prints "[2,3]".
  friend std::ostream& operator<<(std::ostream& out, const Shape& shape) {
    out << '[';
    for (int i = 0; i < shape.rank_; ++i) out << (i ? "," : "") << shape.sizes_[i];
    return out << ']';
  }

 private:
  std::array<int64_t, kMaxRank> sizes_{};
  int rank_ = 0;
};

}  // namespace tessera
