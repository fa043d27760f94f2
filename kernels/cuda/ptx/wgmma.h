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
// fence_proxy_async() of the copying thread followed.
#pragma once

#include "core/dtype.h"
#include "kernels/cuda/ptx/common.h"

#ifndef TESSERA_GPU
#include <algorithm>
#include <optional>
#include <vector>

#include "core/simt/trace.h"
#endif

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

#else

inline bool has_wgmma() { return current_grid().options.profile.capability == 90; }

struct SharedMatrix {
  const std::byte* start;
  int leading, stride;
  Layout layout;
  SharedMatrix(const void* start, int leading, int stride, Layout layout)
      : start(static_cast<const std::byte*>(start)),
        leading(leading),
        stride(stride),
        layout(layout) {}
  SharedMatrix further(int bytes) const { return {start + bytes, leading, stride, layout}; }
  // Where element x, k is.
  const std::byte* at(bool across, int x, int k) const {
    switch (layout) {
      case Layout::Plain:
        return start + x / 8 * stride + k / 8 * leading +
               (across ? k % 8 * 16 + x % 8 * 2 : x % 8 * 16 + k % 8 * 2);
      case Layout::Swizzle64:
        return swizzled(start + x / 8 * stride + x % 8 * 64 + k * 2, 3);
      default:
        return swizzled(start + x / 64 * leading + k / 8 * stride + k % 8 * 128 + x % 64 * 2, 7);
    }
  }

 private:
  static const std::byte* swizzled(const std::byte* place, uintptr_t lines) {
    const auto address = reinterpret_cast<uintptr_t>(place);
    return reinterpret_cast<const std::byte*>(address ^ (address >> 7 & lines) << 4);
  }
};

// Registers of a lane, and what they held at some time.
struct Registers {
  const void* first;
  size_t bytes;
  std::vector<std::byte> values{};

  bool are(const Registers& other) const { return first == other.first && bytes == other.bytes; }
  bool changed() const { return std::memcmp(values.data(), first, bytes) != 0; }
  void note() {
    const auto* const from = static_cast<const std::byte*>(first);
    values.assign(from, from + bytes);
  }
};

// One lane's operands: A in registers, or in shared memory.
struct GroupProduct {
  float* d;
  int sums;  // at d
  std::optional<SharedMatrix> a;
  const uint32_t* fragment;
  SharedMatrix b;
  int warp;  // of the group

  // f(registers) for each array of them.
  template <class F>
  void each_registers(const F& f) const {
    f(Registers{d, size_t(sums) * sizeof(float)});
    if (fragment) f(Registers{fragment, 16});
  }
};

// f(x, k, value) for an operand's elements, `size` rows or columns from `first` on: 8 neighbours in
// memory at a time.
template <bool across, class F>
void each_element(const SharedMatrix& matrix, int first, int size, const F& f) {
  constexpr int kX = across ? 8 : 1, kK = across ? 1 : 8;
  for (int x = 0; x < size; x += kX)
    for (int k = 0; k < 16; k += kK) {
      bf16 eight[8];
      std::memcpy(eight, matrix.at(across, first + x, k), sizeof eight);
      for (int i = 0; i < 8; ++i) f(across ? x + i : x, across ? k : k + i, to_float(eight[i]));
    }
}

// f(row, k, value) for the elements of a warp's fragment of A.
template <class F>
void each_of_fragment(void* const* lanes, const F& f) {
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 8; ++i) {
      const uint32_t word = static_cast<GroupProduct*>(lanes[lane])->fragment[i / 2];
      f(lane / 4 + i / 2 % 2 * 8, lane % 4 * 2 + i % 2 + i / 4 * 8,
        to_float(bf16{uint16_t(word >> i % 2 * 16)}));
    }
}

template <int N, bool b_across>
void multiply_group(void* const* lanes) {
  const GroupProduct& first = *static_cast<GroupProduct*>(lanes[0]);
  float a[16][16], b[16][N], d[16][N];
  const auto put = [&](int x, int k, float value) { a[x][k] = value; };
  if (first.a)
    each_element<false>(*first.a, 16 * first.warp, 16, put);
  else
    each_of_fragment(lanes, put);
  each_element<b_across>(first.b, 0, N, [&](int x, int k, float v) { b[k][x] = v; });
  const auto each_pair = [&](const auto& f) {
    for (int lane = 0; lane < 32; ++lane) {
      float* mine = static_cast<GroupProduct*>(lanes[lane])->d;
      for (int i = 0; i < N / 4; ++i, mine += 2)
        f(mine, &d[lane / 4 + i % 2 * 8][i / 2 * 8 + lane % 4 * 2]);
    }
  };
  each_pair([](float* mine, float* sums) { std::memcpy(sums, mine, 8); });
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int x = 0; x < N; ++x) d[row][x] += a[row][k] * b[k][x];
  each_pair([](float* mine, float* sums) { std::memcpy(mine, sums, 8); });
}

// The products that a thread has in flight.
class Products final : public InFlight {
 public:
  void issue(const GroupProduct& product, Combine combine, Where where) {
    check_fence(product, where);
    One& one = products_.emplace_back(One{product, combine, where, group_});
    if (product.fragment) std::memcpy(one.fragment, product.fragment, sizeof one.fragment);
    if (current_grid().options.landing == Landing::Earliest) wait(-1);
  }
  void commit() { ++group_; }
  void wait(int n) {
    while (!products_.empty() && (n < 0 || products_.front().group < group_ - n)) {
      One one = products_.front();
      products_.erase(products_.begin());
      if (one.product.fragment &&
          std::memcmp(one.product.fragment, one.fragment, sizeof one.fragment) != 0)
        fault("registers of A were written before their wgmma.mma_async had ended", one.where);
      whole_warp(&one.product, one.combine, "wgmma", one.where);
      one.product.each_registers([&](const Registers& some) {
        Registers* const known = find(some);
        (known ? *known : known_.emplace_back(some)).note();
      });
    }
  }
  void fence() {
    fenced_ = true;
    for (Registers& known : known_) known.note();
  }
  void suspended() override {}
  void ended() override { expect_none_left(products_.size(), "wgmma.mma_async"); }

 private:
  struct One {
    GroupProduct product;
    Combine combine;
    Where where;
    int64_t group;
    uint32_t fragment[4] = {};  // as it was at the issue
  };
  void check_fence(const GroupProduct& product, Where where) {
    if (!fenced_) fault("wgmma.mma_async without a wgmma.fence before it", where);
    product.each_registers([&](const Registers& some) {
      if (Registers* const known = find(some); known && known->changed())
        fault("wgmma.mma_async of registers that were written since the last wgmma.fence", where);
    });
  }
  Registers* find(const Registers& some) {
    const auto found = std::ranges::find_if(known_, [&](const auto& k) { return k.are(some); });
    return found == known_.end() ? nullptr : &*found;
  }

  std::vector<One> products_;
  int64_t group_ = 0;
  bool fenced_ = false;
  // Of earlier products, as the last fence saw them, or the product if that came later.
  std::vector<Registers> known_;
};

inline void require_wgmma(const char* name, Where where) {
  if (!has_wgmma()) fault(concat(name, " needs sm_90a"), where);
}
inline void wgmma_fence(Where where = Where::current()) {
  require_wgmma("wgmma.fence", where);
  in_flight<Products>().fence();
}
inline void wgmma_commit(Where where = Where::current()) {
  require_wgmma("wgmma.commit_group", where);
  in_flight<Products>().commit();
}
template <int n>
void wgmma_wait(Where where = Where::current()) {
  require_wgmma("wgmma.wait_group", where);
  in_flight<Products>().wait(n);
}

inline void check_fenced(const SharedMatrix& matrix, bool across, int size, Where where) {
  for (int x = 0; x < size; x += across ? 8 : 1)
    for (int k = 0; k < 16; k += across ? 1 : 8)
      if (const Thread* thread = unfenced_copy(matrix.at(across, x, k)))
        fault(concat("wgmma.mma_async reads what thread ", thread->linear,
                     " copied and has not fenced (fence.proxy.async)"),
              where);
}

// What is wrong with an operand in shared memory, of `size` rows or columns.
inline void check_matrix(const SharedMatrix& matrix, bool across, int size, Where where) {
  if (matrix.layout != Layout::Plain && (matrix.layout == Layout::Swizzle128) != across)
    fault("wgmma.mma_async of a layout that is not emulated", where);
  check_shared(matrix.start, 16, 16, "wgmma.mma_async", where);
  for (const int x : {0, size - 1})
    for (const int k : {0, 15})
      check_shared(matrix.at(across, x, k), 2, 2, "wgmma.mma_async", where);
  if (self().lane() == 0) check_fenced(matrix, across, size, where);
}

// Of a warp's share: a quarter of each operand in shared memory, in matrices as ldmatrix counts
// them.
inline void count_group(int N, int matrices) {
  if (self().lane() != 0) return;
  count(kProducts, 1);
  count(kMultiplyAdds, 16 * 16 * uint64_t(N));
  count(kMatrices, uint64_t(matrices));
  count(kPasses, uint64_t(matrices));
}

template <int N, bool b_across>
void wgmma(float (&d)[N / 8][4], SharedMatrix a, SharedMatrix b, Where where = Where::current()) {
  static_assert(N == 64 || N == 128);
  require_wgmma("wgmma.mma_async", where);
  check_matrix(a, false, 64, where), check_matrix(b, b_across, N, where);
  count_group(N, 4 + N / 16);
  in_flight<Products>().issue({&d[0][0], N / 2, a, nullptr, b, int(self().warp() % 4)},
                              multiply_group<N, b_across>, where);
}

template <int N, bool b_across>
void wgmma(float (&d)[N / 8][4], const uint32_t (&a)[4], SharedMatrix b,
           Where where = Where::current()) {
  static_assert(N == 64 || N == 128);
  require_wgmma("wgmma.mma_async", where);
  check_matrix(b, b_across, N, where);
  count_group(N, N / 16);
  in_flight<Products>().issue({&d[0][0], N / 2, std::nullopt, a, b, int(self().warp() % 4)},
                              multiply_group<N, b_across>, where);
}

#endif

}  // namespace tessera::TESSERA_CUDA::ptx
