// CUDA's vocabulary for the host compiler: qualifiers, dim3 and the vector types. __shared__ and
// __constant__ are absent: shared memory is a struct (shared_memory<T>() in launch.h).
#pragma once

#include <cstdint>

#define __global__
#define __device__
#define __host__
// Not forced: kernels of one piece take clang three times as long, g++ twice, and run no faster.
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
#define __launch_bounds__(...)

namespace tessera::simt {

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr uint64_t count() const { return uint64_t{x} * y * z; }
};

// Sizes and alignments of the CUDA C++ Programming Guide, "Built-in Vector Types".
#define TESSERA_VECTOR_TYPES(name, T)                               \
  struct alignas(sizeof(T)) name##1 {                               \
    T x;                                                            \
  };                                                                \
  struct alignas(2 * sizeof(T)) name##2 {                           \
    T x, y;                                                         \
  };                                                                \
  struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) name##4 { \
    T x, y, z, w;                                                   \
  };                                                                \
  constexpr name##1 make_##name##1(T x) { return {x}; }             \
  constexpr name##2 make_##name##2(T x, T y) { return {x, y}; }     \
  constexpr name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
TESSERA_VECTOR_TYPES(char, signed char)
TESSERA_VECTOR_TYPES(uchar, unsigned char)
TESSERA_VECTOR_TYPES(short, short)
TESSERA_VECTOR_TYPES(ushort, unsigned short)
TESSERA_VECTOR_TYPES(int, int)
TESSERA_VECTOR_TYPES(uint, unsigned)
TESSERA_VECTOR_TYPES(longlong, long long)
TESSERA_VECTOR_TYPES(ulonglong, unsigned long long)
TESSERA_VECTOR_TYPES(float, float)
TESSERA_VECTOR_TYPES(double, double)
#undef TESSERA_VECTOR_TYPES

struct float3 {
  float x, y, z;
};
struct int3 {
  int x, y, z;
};
constexpr float3 make_float3(float x, float y, float z) { return {x, y, z}; }
constexpr int3 make_int3(int x, int y, int z) { return {x, y, z}; }
constexpr uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

}  // namespace tessera::simt
