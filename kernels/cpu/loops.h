// What the fast loops share: elements stored in f32 or bf16 and computed in float, writing or
// adding rows that vectorise, and sums of fixed order.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/dispatch.h"

namespace tessera {

// Sizes of an image tensor, and where its elements are.
struct Nhwc {
  int64_t N, H, W, C;
  Nhwc(const char* what, const Tensor& tensor) {
    ENSURE(tensor.rank() == 4, what, " is ", tensor.shape(), ", expected [N,H,W,C]");
    N = tensor.dim(0), H = tensor.dim(1), W = tensor.dim(2), C = tensor.dim(3);
  }
  int64_t at(int64_t n, int64_t h, int64_t w, int64_t c) const {
    return ((n * H + h) * W + w) * C + c;
  }
};

constexpr float to_float(float x) { return x; }

inline void put(bf16& target, float value, GradMode mode) {
  target = to_bf16(mode == GradMode::Accumulate ? to_float(target) + value : value);
}

namespace cpu {

// Calls f.operator()<T>() for the type that activations are stored in: float or bf16.
template <class F>
decltype(auto) with_storage(DType dtype, F&& f) {
  return dtype == DType::bf16 ? f.template operator()<bf16>() : f.template operator()<float>();
}

// x as it is stored.
template <class T>
constexpr T stored(float x) {
  if constexpr (std::is_same_v<T, bf16>)
    return to_bf16(x);
  else
    return x;
}

// to[i] = value(i), or to[i] += value(i), for i < n. `value`, a float, must be simple enough to
// vectorise.
template <class T, class Value>
inline void put_row(T* to, int64_t n, GradMode mode, Value value) {
  if (mode == GradMode::Overwrite) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) to[i] = stored<T>(value(i));
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) to[i] = stored<T>(to_float(to[i]) + value(i));
  }
}

// The same by all threads: for whole tensors.
template <class T, class Value>
inline void put_all(T* to, int64_t n, GradMode mode, Value value) {
  if (mode == GradMode::Overwrite) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; ++i) to[i] = stored<T>(value(i));
  } else {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; ++i) to[i] = stored<T>(to_float(to[i]) + value(i));
  }
}

// Writes or adds a tensor of f32 to one of either type.
inline void put_floats(const Tensor& from, Tensor to, GradMode mode) {
  const float* value = from.data<float>();
  with_storage(to.dtype(), [&]<class T>() {
    put_all(to.data<T>(), to.numel(), mode, [value](int64_t i) { return value[i]; });
  });
}

// from in f32: itself, or a copy.
inline Tensor as_f32(Stream& stream, const Tensor& from) {
  if (from.dtype() == DType::f32) return from;
  Tensor to = Tensor::empty(stream, from.shape());
  const bf16* value = from.data<bf16>();
  put_all(to.data<float>(), to.numel(), GradMode::Overwrite,
          [value](int64_t i) { return to_float(value[i]); });
  return to;
}

inline constexpr int64_t kBlock = 16384;  // elements of a long loop that one thread takes at a time

// The sum of value(i), a double, over first <= i < end, as 32 sums side by side.
template <class Value>
inline double lane_sum(int64_t first, int64_t end, Value value) {
  constexpr int kLanes = 32;
  double sums[kLanes] = {};
  for (; first + kLanes <= end; first += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += value(first + lane);
  for (int lane = 0; first < end; ++lane, ++first) sums[lane] += value(first);
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

// The same over i < n by all threads. Each takes blocks, whose sums are added in order: the bits do
// not depend on the number of threads.
template <class Value>
double block_sum(Stream& stream, int64_t n, Value value) {
  const int64_t blocks = ceil_div(n, kBlock);
  Tensor partials = Tensor::empty(stream, {blocks}, DType::f64);
  double* partial = partials.data<double>();
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < blocks; ++block)
    partial[block] = lane_sum(block * kBlock, std::min(n, (block + 1) * kBlock), value);
  double total = 0;
  for (int64_t block = 0; block < blocks; ++block) total += partial[block];
  return total;
}

}  // namespace cpu
}  // namespace tessera
