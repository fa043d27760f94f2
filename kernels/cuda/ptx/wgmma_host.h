// wgmma on the host model: the part of wgmma.h that computes.
#pragma once

#include <algorithm>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "core/simt/trace.h"
#include "kernels/cuda/ptx/wgmma.h"

namespace tessera::TESSERA_CUDA::ptx {

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
  // One number for all of it, if not the hardware's.
  uint64_t bits() const {
    uint64_t hash = reinterpret_cast<uintptr_t>(start);
    for (const int part : {leading, stride, int(layout)})
      hash = hash * 0x100000001B3 ^ uint64_t(part);
    return hash;
  }
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

  uint64_t operands() const { return (a ? a->bits() : 0) * 31 + b.bits(); }
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
  for (int lane = 1; lane < 32; ++lane)
    if (static_cast<GroupProduct*>(lanes[lane])->operands() != first.operands())
      fault("wgmma.mma_async of other matrices than another lane's");
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
    step(product.operands(), "wgmma.mma_async", where);
    One& one = products_.emplace_back(One{product, combine, where, group_});
    if (product.fragment) std::memcpy(one.fragment, product.fragment, sizeof one.fragment);
    if (current_grid().options.landing == Landing::Earliest) land(-1);
  }
  void commit(Where where) {
    ++group_;
    step(1, "wgmma.commit_group", where);
  }
  void wait(int n, Where where) {
    step(uint64_t(2 + n), "wgmma.wait_group", where);
    land(n);
  }
  void fence(Where where) {
    step(1, "wgmma.fence", where);
    fenced_ = true;
    for (Registers& known : known_) known.note();
  }
  void suspended() override {}
  void ended() override {
    expect_none_left(products_.size(), "wgmma.mma_async");
    if (steps_ > 0) in_step(steps_, kEnd, "the end", {});
  }

 private:
  // Products until all groups but the last n are done; -1: all that were issued.
  void land(int n) {
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
  // Of the warps of a group by their first lanes; those of a warp meet in products.
  void step(uint64_t what, const char* name, Where where) {
    if (self().lane() != 0) return;
    const uint64_t place = std::hash<std::string_view>{}(name) + uint64_t(where.line);
    in_step(steps_++, (what * 0x9E3779B97F4A7C15 ^ place) | 1, name, where);
  }

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
  size_t steps_ = 0;
  bool fenced_ = false;
  // Of earlier products, as the last fence saw them, or the product if that came later.
  std::vector<Registers> known_;
};

inline void require_wgmma(const char* name, Where where) {
  if (!has_wgmma()) fault(concat(name, " needs sm_90a"), where);
}
inline void wgmma_fence(Where where = Where::current()) {
  require_wgmma("wgmma.fence", where);
  in_flight<Products>().fence(where);
}
inline void wgmma_commit(Where where = Where::current()) {
  require_wgmma("wgmma.commit_group", where);
  in_flight<Products>().commit(where);
}
template <int n>
void wgmma_wait(Where where = Where::current()) {
  require_wgmma("wgmma.wait_group", where);
  in_flight<Products>().wait(n, where);
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
  for (const int bytes : {matrix.leading, matrix.stride})
    if (bytes % 16 || bytes < 0 || bytes >= 1 << 18)
      fault(concat("wgmma.mma_async of a matrix whose parts are ", bytes, " bytes apart"), where);
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

}  // namespace tessera::TESSERA_CUDA::ptx
