// ldmatrix and stmatrix: a warp moves 8x8 matrices of 16-bit elements between shared memory and
// the fragments of mma.h. Lane l gives the address of row l % 8 (8 elements, aligned to 16 bytes)
// of matrix l / 8: x1 uses those of lanes 0-7, x2 of 0-15, x4 of 0-31. Register i of lane l holds
// elements [l / 4][2 (l % 4)] and [l / 4][2 (l % 4) + 1] of matrix i, with _trans those of its
// transpose. Below sm_80 all lanes must give valid addresses, also those that are not used.
// (PTX ISA, "ldmatrix", "stmatrix".)
#pragma once

#ifndef TESSERA_GPU
#include "core/simt/trace.h"
#endif
#include "kernels/cuda/ptx/common.h"

namespace tessera::TESSERA_CUDA::ptx {

#ifdef TESSERA_GPU

#define TESSERA_LOAD_STORE(suffix, modifier)                                                      \
  __device__ __forceinline__ void ldmatrix_x1##suffix(uint32_t(&r)[1], const void* row) {         \
    asm volatile("ldmatrix.sync.aligned.m8n8.x1" modifier ".shared.b16 {%0}, [%1];"               \
                 : "=r"(r[0])                                                                     \
                 : "r"(shared_address(row))                                                       \
                 : "memory");                                                                     \
  }                                                                                               \
  __device__ __forceinline__ void ldmatrix_x2##suffix(uint32_t(&r)[2], const void* row) {         \
    asm volatile("ldmatrix.sync.aligned.m8n8.x2" modifier ".shared.b16 {%0,%1}, [%2];"            \
                 : "=r"(r[0]), "=r"(r[1])                                                         \
                 : "r"(shared_address(row))                                                       \
                 : "memory");                                                                     \
  }                                                                                               \
  __device__ __forceinline__ void ldmatrix_x4##suffix(uint32_t(&r)[4], const void* row) {         \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" modifier ".shared.b16 {%0,%1,%2,%3}, [%4];"      \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                                 \
                 : "r"(shared_address(row))                                                       \
                 : "memory");                                                                     \
  }                                                                                               \
  __device__ __forceinline__ void stmatrix_x1##suffix(void* row, const uint32_t(&r)[1]) {         \
    TESSERA_STORE("stmatrix.sync.aligned.m8n8.x1" modifier ".shared.b16 [%0], {%1};", "r"(r[0])); \
  }                                                                                               \
  __device__ __forceinline__ void stmatrix_x2##suffix(void* row, const uint32_t(&r)[2]) {         \
    TESSERA_STORE("stmatrix.sync.aligned.m8n8.x2" modifier ".shared.b16 [%0], {%1,%2};",          \
                  "r"(r[0]), "r"(r[1]));                                                          \
  }                                                                                               \
  __device__ __forceinline__ void stmatrix_x4##suffix(void* row, const uint32_t(&r)[4]) {         \
    TESSERA_STORE("stmatrix.sync.aligned.m8n8.x4" modifier ".shared.b16 [%0], {%1,%2,%3,%4};",    \
                  "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]));                                    \
  }

#if __CUDA_ARCH__ >= 900
#define TESSERA_STORE(text, ...) \
  asm volatile(text ::"r"(shared_address(row)), __VA_ARGS__ : "memory")
#else
#define TESSERA_STORE(text, ...) __trap()
#endif

TESSERA_LOAD_STORE(, "")
TESSERA_LOAD_STORE(_trans, ".trans")

#undef TESSERA_STORE
#undef TESSERA_LOAD_STORE

#else

// One lane's operands.
struct MatrixOperands {
  void* row;
  uint32_t* registers;
};

// The place in shared memory of the element that is half `half` of register i of a lane.
template <bool transposed>
uint16_t* matrix_element(void* const* lanes, int i, int lane, int half) {
  const int row = lane / 4, column = lane % 4 * 2 + half;
  const int from = transposed ? column : row, at = transposed ? row : column;
  return static_cast<uint16_t*>(static_cast<MatrixOperands*>(lanes[8 * i + from])->row) + at;
}

template <int matrices>
void count_matrices(void* const* lanes) {
  if (!LaunchTrace::current()) return;
  count(kMatrices, matrices);
  for (int i = 0; i < matrices; ++i)
    count(kPasses, uint64_t(passes_of_matrix([&](int row) {
            return static_cast<MatrixOperands*>(lanes[8 * i + row])->row;
          })));
}

template <int matrices, bool transposed>
void load_matrices(void* const* lanes) {
  count_matrices<matrices>(lanes);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < matrices; ++i)
      static_cast<MatrixOperands*>(lanes[lane])->registers[i] =
          *matrix_element<transposed>(lanes, i, lane, 0) |
          uint32_t{*matrix_element<transposed>(lanes, i, lane, 1)} << 16;
}

template <int matrices, bool transposed>
void store_matrices(void* const* lanes) {
  count_matrices<matrices>(lanes);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < matrices; ++i) {
      const uint32_t pair = static_cast<MatrixOperands*>(lanes[lane])->registers[i];
      *matrix_element<transposed>(lanes, i, lane, 0) = uint16_t(pair);
      *matrix_element<transposed>(lanes, i, lane, 1) = uint16_t(pair >> 16);
    }
}

template <int matrices, bool transposed>
void ldmatrix(uint32_t (&r)[matrices], const void* row, const char* name, Where where) {
  require(75, name, where);
  if (int(self().lane()) < 8 * matrices || current_grid().options.profile.capability < 80)
    check_shared(row, 16, 16, name, where);
  MatrixOperands mine{const_cast<void*>(row), r};
  whole_warp(&mine, load_matrices<matrices, transposed>, name, where);
}

template <int matrices, bool transposed>
void stmatrix(void* row, const uint32_t (&r)[matrices], const char* name, Where where) {
  require(90, name, where);
  if (int(self().lane()) < 8 * matrices) check_shared(row, 16, 16, name, where);
  MatrixOperands mine{row, const_cast<uint32_t*>(r)};
  whole_warp(&mine, store_matrices<matrices, transposed>, name, where);
}

#define TESSERA_LOAD_STORE(n, suffix, transposed)                     \
  inline void ldmatrix_x##n##suffix(uint32_t(&r)[n], const void* row, \
                                    Where where = Where::current()) { \
    ldmatrix<n, transposed>(r, row, "ldmatrix.x" #n, where);          \
  }                                                                   \
  inline void stmatrix_x##n##suffix(void* row, const uint32_t(&r)[n], \
                                    Where where = Where::current()) { \
    stmatrix<n, transposed>(row, r, "stmatrix.x" #n, where);          \
  }

TESSERA_LOAD_STORE(1, , false)
TESSERA_LOAD_STORE(2, , false)
TESSERA_LOAD_STORE(4, , false)
TESSERA_LOAD_STORE(1, _trans, true)
TESSERA_LOAD_STORE(2, _trans, true)
TESSERA_LOAD_STORE(4, _trans, true)

#undef TESSERA_LOAD_STORE

#endif

}  // namespace tessera::TESSERA_CUDA::ptx
