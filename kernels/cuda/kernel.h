// What every .cu file starts from: CUDA or its host model, element types, packs of elements, and
// the launch of elementwise kernels.
#pragma once

#include "core/cuda/cuda.h"
#include "kernels/cuda/ptx/convert.h"
#include "kernels/cuda/ptx/grid_dependency.h"
#include "kernels/kernels.h"

#ifdef __CUDACC__
#define TESSERA_UNROLL _Pragma("unroll")
#define TESSERA_NO_UNROLL _Pragma("unroll 1")
#else
#define TESSERA_UNROLL
#define TESSERA_NO_UNROLL
#endif

namespace tessera::TESSERA_CUDA {

// x, in a way that the compiler cannot see through: what a loop computes from it is computed anew
// in every round, and not held in registers from before the loop.
__device__ __forceinline__ int anew(int x) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(x));
#endif
  return x;
}

inline cudaStream_t cuda_stream(Stream& stream) {
  return static_cast<cudaStream_t>(stream.native());
}

// Whether a GPU has tensor cores for bf16 and tf32 (ptx/mma.h), and those that multiply by
// themselves, which 9.0 alone has (ptx/wgmma.h).
inline bool has_mma(const DeviceInfo& gpu) { return gpu.capability >= 80; }
inline bool has_wgmma(const DeviceInfo& gpu) { return gpu.capability == 90; }

template <class T>
T* data_or_null(Tensor& tensor) {
  return tensor.defined() ? tensor.data<T>() : nullptr;
}
template <class T>
const T* data_or_null(const Tensor& tensor) {
  return tensor.defined() ? tensor.data<T>() : nullptr;
}

// Calls f with a value of the element type of activations: with_storage(x.dtype(), [&](auto zero) {
// using T = decltype(zero); ... }).
template <class F>
void with_storage(DType dtype, F&& f) {
  if (dtype == DType::f32) return f(float{});
  ENSURE(dtype == DType::bf16, "no CUDA kernels for ", name_of(dtype));
  f(bf16{});
}

using tessera::to_float;
__device__ __forceinline__ float to_float(float x) { return x; }

template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (sizeof(T) == 2)
    return ptx::convert_bf16(x);
  else
    return x;
}

// N neighbouring elements, read and written as one aligned vector.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  static constexpr bool kPairs = std::is_same_v<T, bf16> && N % 2 == 0;
  union {
    T values[N];
    std::conditional_t<kPairs, uint32_t, T> pairs[kPairs ? N / 2 : N];
  };
  __device__ __forceinline__ static Pack load(const T* from) { return load_vector<Pack>(from); }
  // Rounds.
  __device__ __forceinline__ static Pack of(const float (&numbers)[N]) {
    Pack pack;
    if constexpr (kPairs) {
      for (int i = 0; i < N; i += 2)
        pack.pairs[i / 2] = ptx::convert_bf16x2(numbers[i], numbers[i + 1]);
    } else {
      for (int i = 0; i < N; ++i) pack.set(i, numbers[i]);
    }
    return pack;
  }
  __device__ __forceinline__ void store(T* to) const { store_vector(to, *this); }
  __device__ __forceinline__ float operator[](int i) const {
    // From the word that holds it: one instruction, not two by way of 16 bits.
    if constexpr (kPairs)
      return __uint_as_float(i % 2 ? pairs[i / 2] & 0xFFFF0000 : pairs[i / 2] << 16);
    else
      return to_float(values[i]);
  }
  __device__ __forceinline__ void set(int i, float x) { values[i] = from_float<T>(x); }
};

// How many elements of T make 16 bytes.
template <class T>
inline constexpr int kPack = 16 / sizeof(T);

// Writes or adds.
template <class T>
__device__ __forceinline__ void put_at(T* to, float value, bool accumulate) {
  *to = from_float<T>(accumulate ? to_float(*to) + value : value);
}

// Whether pointers (null is fine) and a size allow packs of N elements of T.
template <class T, int N, class... Pointers>
bool packs_fit(int64_t size, const Pointers*... pointers) {
  return size % N == 0 && ((reinterpret_cast<uintptr_t>(pointers) % (sizeof(T) * N) == 0) && ...);
}

// Calls f(pack size constant): N where packs fit, else 1.
template <int N, class F>
auto with_pack(bool fit, F&& f) {
  if (fit) return f(std::integral_constant<int, N>{});
  return f(std::integral_constant<int, 1>{});
}

inline constexpr int kElementwiseThreads = 256;

// f(i) for i = 0 .. n-1, one thread each; f is a struct with a __device__ operator().
template <class F>
__global__ void elementwise_kernel(int64_t n, F f) {
  ptx::begin_kernel();
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) f(i);
}

template <class F>
void for_each(Stream& stream, int64_t n, const F& f) {
  if (n == 0) return;
  launch_next<elementwise_kernel<F>>(
      {cuda_stream(stream), dim3(unsigned(ceil_div(n, kElementwiseThreads))),
       dim3(kElementwiseThreads)},
      n, f);
}

}  // namespace tessera::TESSERA_CUDA
