// wgmma: a warpgroup (four warps, the first a multiple of four) multiplies matrices that lie in
// shared memory, D += A B, on Hopper's tensor cores, and goes on while they work. A is [64,16], B
// [16,N], both bf16; D is in registers, of sums in float. Warp w of the group has rows 16 w and on
// of D, lane l of them rows l / 4 and l / 4 + 8, and there columns 8 j + 2 (l % 4) and the next:
//   d[j][0..1] of the first row, d[j][2..3] of the second.
// Only sm_90a. (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".)
//
//   wgmma_fence()             before the first one, and after registers of D or A were touched
//   wgmma<N, b_across>(d, a, b)
//                             issues one. across: memory runs along B's columns, and not along the
//                             depth, as it does in an A of shared memory. Or A is in registers: a
//                             warp has its 16 rows as a fragment of mma.m16n8k16 (mma.h), which
//                             stays as it is until the wait. On the host model d and a live until
//                             the thread's last wgmma_fence()
//   wgmma_commit()            what was issued since the last commit becomes a group
//   wgmma_wait<n>()           until all groups but the last n are done: D may be read, and memory
//                             written
//
// What threads wrote to shared memory is seen after fence_proxy_async() and a barrier.
//
// A SharedMatrix says where elements lie: in units of 8 x 8, "cores". The layouts in use, after the
// PTX ISA's "Shared Memory Matrix Layout", with x a row of A or a column of B, k the depth:
//   Plain, along       a core is 8 x by 16 bytes of k, 128 bytes together; cores are `leading`
//                      bytes apart along k and `stride` bytes along x
//   Plain, across      a core is 8 k by 16 bytes of x; cores are `leading` bytes apart along k and
//                      `stride` bytes along x
//   Swizzle64, along   lines of x, 64 bytes of k each; 8 lines are `stride` bytes from the next 8
//   Swizzle128, across lines of k, 128 bytes of x each; 8 lines are `stride` bytes from the next 8,
//                      and 64 x are `leading` bytes from the next 64
// A swizzle permutes the 16-byte chunks of a line: chunk i of line l is at i ^ l / 2 % 4 (64), i ^
// l % 8 (128), by the bits of the address: patterns begin at multiples of 512 and 1024 bytes.
//
// On the host model a product takes place at the issue (Landing::Earliest) or in the wait that
// covers it, where the operands must still be there. Faults: a product before the first
// wgmma_fence(), or of an earlier product's registers that have changed since the last one;
// registers of A that change before their product; operands that cp.async wrote and no
// fence_proxy_async() of the copying thread followed; warps of a group, or lanes, that do not
// execute the same.
#pragma once

#include "core/dtype.h"
#include "kernels/cuda/ptx/common.h"

namespace tessera::TESSERA_CUDA::ptx {

enum class Layout { Plain = 0, Swizzle128 = 1, Swizzle64 = 2 };

#ifdef TESSERA_GPU

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define TESSERA_WGMMA(...) asm volatile(__VA_ARGS__)
__device__ constexpr bool has_wgmma() { return true; }
#else
#define TESSERA_WGMMA(...) __trap()
__device__ constexpr bool has_wgmma() { return false; }
#endif

class SharedMatrix {
 public:
  __device__ __forceinline__ SharedMatrix(const void* start, int leading, int stride, Layout layout)
      : low_((shared_address(start) >> 4) | uint32_t(leading >> 4) << 16),
        high_(uint32_t(stride >> 4) | uint32_t(layout) << 30) {}
  // The matrix that begins so many bytes, a multiple of 16, further.
  __device__ __forceinline__ SharedMatrix further(int bytes) const {
    SharedMatrix result = *this;
    result.low_ += uint32_t(bytes >> 4);
    return result;
  }
  __device__ __forceinline__ uint64_t bits() const { return uint64_t{high_} << 32 | low_; }

 private:
  uint32_t low_, high_;
};

__device__ __forceinline__ void wgmma_fence() {
  TESSERA_WGMMA("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  TESSERA_WGMMA("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int n>
__device__ __forceinline__ void wgmma_wait() {
  TESSERA_WGMMA("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
}

#define TESSERA_D4(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define TESSERA_D16(j) TESSERA_D4(j), TESSERA_D4(j + 1), TESSERA_D4(j + 2), TESSERA_D4(j + 3)

#define TESSERA_SUMS_64                                                                         \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
  "%25,%26,%27,%28,%29,%30,%31}, "
#define TESSERA_SUMS_128                                                                        \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
  "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,"    \
  "%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "

template <int N, bool b_across>
__device__ __forceinline__ void wgmma(float (&d)[N / 8][4], SharedMatrix a, SharedMatrix b) {
  static_assert(N == 64 || N == 128);
  if constexpr (N == 64)
    TESSERA_WGMMA("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " TESSERA_SUMS_64
                  "%32, %33, 1, 1, 1, 0, %34;"
                  : TESSERA_D16(0), TESSERA_D16(4)
                  : "l"(a.bits()), "l"(b.bits()), "n"(int(b_across)));
  else
    TESSERA_WGMMA("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " TESSERA_SUMS_128
                  "%64, %65, 1, 1, 1, 0, %66;"
                  : TESSERA_D16(0), TESSERA_D16(4), TESSERA_D16(8), TESSERA_D16(12)
                  : "l"(a.bits()), "l"(b.bits()), "n"(int(b_across)));
}

template <int N, bool b_across>
__device__ __forceinline__ void wgmma(float (&d)[N / 8][4], const uint32_t (&a)[4],
                                      SharedMatrix b) {
  static_assert(N == 64 || N == 128);
  if constexpr (N == 64)
    TESSERA_WGMMA("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " TESSERA_SUMS_64
                  "{%32,%33,%34,%35}, %36, 1, 1, 1, %37;"
                  : TESSERA_D16(0), TESSERA_D16(4)
                  : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits()), "n"(int(b_across)));
  else
    TESSERA_WGMMA("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " TESSERA_SUMS_128
                  "{%64,%65,%66,%67}, %68, 1, 1, 1, %69;"
                  : TESSERA_D16(0), TESSERA_D16(4), TESSERA_D16(8), TESSERA_D16(12)
                  : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits()), "n"(int(b_across)));
}

#undef TESSERA_SUMS_128
#undef TESSERA_SUMS_64
#undef TESSERA_D16
#undef TESSERA_D4
#undef TESSERA_WGMMA

#endif

}  // namespace tessera::TESSERA_CUDA::ptx

#ifndef TESSERA_GPU
#include "kernels/cuda/ptx/wgmma_host.h"
#endif
