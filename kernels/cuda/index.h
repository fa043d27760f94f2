// Indices: division by numbers that are known at the launch, in 64 bits (elementwise kernels) and
// in 32, the 2x2 patches of images, and packs that are written or added.
#pragma once

#include <bit>

#include "kernels/cuda/kernel.h"

namespace tessera::TESSERA_CUDA {

__extension__ using Wide = unsigned __int128;

// Divides 0 <= n < 2^63 by d >= 1 with one multiplication in place of the many instructions of a
// 64-bit division: n / d = floor(2n * magic / 2^64) >> shift, with shift = ceil(log2 d) and
// magic = ceil(2^(63 + shift) / d) < 2^64. Exact, as magic * d exceeds 2^(63 + shift) by less than
// 2^shift. Granlund and Montgomery, "Division by invariant integers using multiplication" (1994),
// theorem 4.2.
class Divisor {
 public:
  // 0 counts as 1: for an empty tensor there is nothing to divide.
  explicit Divisor(int64_t d)
      : d_(d < 1 ? 1 : d),
        shift_(int(std::bit_width(uint64_t(d_ - 1)))),
        magic_(uint64_t(((Wide{1} << (63 + shift_)) + Wide(d_ - 1)) / Wide(d_))) {}

  __device__ __forceinline__ int64_t quotient(int64_t n) const {
    return int64_t(uint64_t(Wide(2 * uint64_t(n)) * magic_ >> 64) >> shift_);
  }
  // n becomes the quotient; returns the remainder.
  __device__ __forceinline__ int64_t divide(int64_t& n) const {
    const int64_t whole = n;
    n = quotient(n);
    return whole - n * d_;
  }

 private:
  int64_t d_;
  int shift_;
  uint64_t magic_;
};

// Divides 0 <= n < 2^31 by 1 <= d < 2^31 with one multiplication: n / d = floor(2n * magic / 2^32)
// >> shift, with shift = ceil(log2 d) and magic = ceil(2^(31 + shift) / d) < 2^32. The same
// theorem.
class Divisor32 {
 public:
  // 0 counts as 1: an image without pixels divides nothing.
  explicit Divisor32(int d)
      : d_(d < 1 ? 1 : d),
        shift_(int(std::bit_width(unsigned(d_ - 1)))),
        magic_(uint32_t(((uint64_t{1} << (31 + shift_)) + unsigned(d_ - 1)) / unsigned(d_))) {}

  __device__ __forceinline__ int quotient(int n) const {
    return int(__umulhi(2 * unsigned(n), magic_) >> shift_);
  }
  // n becomes the quotient; returns the remainder.
  __device__ __forceinline__ int divide(int& n) const {
    const int whole = n;
    n = quotient(n);
    return whole - n * d_;
  }
  __device__ __forceinline__ int divisor() const { return d_; }

 private:
  int d_, shift_;
  uint32_t magic_;
};

// The 2x2 patches of an image [N,2H,2W,C], one for each pixel of [N,H,W], counted through the
// batch.
struct Patches {
  Divisor by_width;
  int64_t row;  // elements of a row of the image
  int64_t C;

  Patches(int64_t W, int64_t C) : by_width(W), row(2 * W * C), C(C) {}

  // Element of channel c in the upper left pixel.
  __device__ __forceinline__ int64_t at(int64_t patch, int64_t c) const {
    int64_t r = patch;
    const int64_t w = by_width.divide(r);
    return 2 * r * row + 2 * w * C + c;
  }
  // From there to pixel p = 2 * (row in the patch) + (column in the patch).
  __device__ __forceinline__ int64_t step(int p) const { return p / 2 * row + p % 2 * C; }
};

// Writes or adds.
template <class T, int N>
__device__ __forceinline__ void put_pack(T* to, Pack<T, N> values, bool accumulate) {
  if (accumulate) {
    const Pack<T, N> old = Pack<T, N>::load(to);
    float sums[N];
    for (int j = 0; j < N; ++j) sums[j] = old[j] + values[j];
    values = Pack<T, N>::of(sums);
  }
  values.store(to);
}

// The sum of the four pixels of a patch, in the order of upsample_nearest_bwd's definition.
template <class T, int N>
__device__ __forceinline__ void put_patch_sum(T* to, const T* patch, const Patches& patches,
                                              bool accumulate) {
  Pack<T, N> in[4];
  for (int p = 0; p < 4; ++p) in[p] = Pack<T, N>::load(patch + patches.step(p));
  Pack<T, N> old;
  if (accumulate) old = Pack<T, N>::load(to);
  float sums[N];
  for (int j = 0; j < N; ++j) {
    const float value = (in[0][j] + in[1][j]) + (in[2][j] + in[3][j]);
    sums[j] = accumulate ? old[j] + value : value;
  }
  Pack<T, N>::of(sums).store(to);
}

}  // namespace tessera::TESSERA_CUDA
