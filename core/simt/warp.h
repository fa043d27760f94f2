// __syncthreads and its variants, __syncwarp, shuffles, votes, match and warp reductions
// (CUDA C++ Programming Guide, "Warp Vote Functions" to "Warp Shuffle Functions").
// __activemask is absent: what it gives depends on the compiler and on luck.
#pragma once

#include <bit>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/simt/block.h"

namespace tessera::simt {

inline constexpr int warpSize = 32;

inline void __syncthreads(Where where = Where::current()) {
  block_barrier(0, 0, 0, "__syncthreads", where);
}
inline int __syncthreads_count(int predicate, Where where = Where::current()) {
  return block_barrier(0, 0, predicate, "__syncthreads_count", where);
}
inline int __syncthreads_and(int predicate, Where where = Where::current()) {
  return block_barrier(0, 0, !predicate, "__syncthreads_and", where) == 0;
}
inline int __syncthreads_or(int predicate, Where where = Where::current()) {
  return block_barrier(0, 0, predicate, "__syncthreads_or", where) != 0;
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFF, Where where = Where::current()) {
  warp_rendezvous(mask, nullptr, nullptr, "__syncwarp", where);
}

// Calls f(lane, operands) for the lanes that take part in a rendezvous.
template <class Operands, class F>
void for_each_lane(void* const* lanes, F f) {
  for (int i = 0; i < 32; ++i)
    if (lanes[i]) f(i, *static_cast<Operands*>(lanes[i]));
}

// The value of lane `source`, which must take part: it would be undefined otherwise.
template <class T>
T shuffle(unsigned mask, const T& value, int source, const char* name, Where where) {
  static_assert(std::is_trivially_copyable_v<T>);
  struct Operands {
    T value, result;
    int source;
    bool found;
  } mine{value, value, source, false};
  warp_rendezvous(
      mask, &mine,
      [](void* const* lanes) {
        for_each_lane<Operands>(lanes, [&](int, Operands& to) {
          if (!lanes[to.source]) return;
          to.result = static_cast<const Operands*>(lanes[to.source])->value;
          to.found = true;
        });
      },
      name, where);
  if (!mine.found) fault(concat(name, " reads lane ", source, ", which takes no part"), where);
  return mine.result;
}

inline void check_width(int width, const char* name, Where where) {
  if (width < 1 || width > 32 || !std::has_single_bit(unsigned(width)))
    fault(concat(name, " with width ", width), where);
}

// A lane whose source is outside its segment of `width` lanes gets its own value back. Of lanes and
// distances the lower five bits count (PTX ISA, "shfl.sync").
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, Where where = Where::current()) {
  check_width(width, "__shfl_sync", where);
  const int first = int(self().lane()) / width * width;
  return shuffle(mask, value, first + (source & (width - 1)), "__shfl_sync", where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  Where where = Where::current()) {
  check_width(width, "__shfl_xor_sync", where);
  const int lane = int(self().lane()), source = lane ^ (lanes & 31);
  const bool in_reach = source < (lane / width + 1) * width;
  return shuffle(mask, value, in_reach ? source : lane, "__shfl_xor_sync", where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   Where where = Where::current()) {
  check_width(width, "__shfl_down_sync", where);
  const unsigned lane = self().lane();
  delta %= 32;
  const bool in_reach = lane % unsigned(width) + delta < unsigned(width);
  return shuffle(mask, value, int(in_reach ? lane + delta : lane), "__shfl_down_sync", where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 Where where = Where::current()) {
  check_width(width, "__shfl_up_sync", where);
  const unsigned lane = self().lane();
  delta %= 32;
  const bool in_reach = lane % unsigned(width) >= delta;
  return shuffle(mask, value, int(in_reach ? lane - delta : lane), "__shfl_up_sync", where);
}

// What the lanes' values are folded to, from the lowest lane up.
template <class T, class Fold>
T fold_lanes(unsigned mask, T value, Fold, const char* name, Where where) {
  struct Operands {
    T value;
  } mine{value};
  warp_rendezvous(
      mask, &mine,
      [](void* const* lanes) {
        T sum{};
        bool first = true;
        for_each_lane<Operands>(lanes, [&](int, Operands& one) {
          sum = std::exchange(first, false) ? one.value : Fold{}(sum, one.value);
        });
        for_each_lane<Operands>(lanes, [&](int, Operands& one) { one.value = sum; });
      },
      name, where);
  return mine.value;
}

struct FoldOr {
  unsigned operator()(unsigned a, unsigned b) const { return a | b; }
};
struct FoldAnd {
  unsigned operator()(unsigned a, unsigned b) const { return a & b; }
};
struct FoldXor {
  unsigned operator()(unsigned a, unsigned b) const { return a ^ b; }
};
struct FoldSum {  // wraps
  template <class T>
  T operator()(T a, T b) const {
    return T(unsigned(a) + unsigned(b));
  }
};
struct FoldMin {
  template <class T>
  T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct FoldMax {
  template <class T>
  T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

inline unsigned __ballot_sync(unsigned mask, int predicate, Where where = Where::current()) {
  const unsigned mine = predicate ? 1u << self().lane() : 0;
  return fold_lanes(mask, mine, FoldOr{}, "__ballot_sync", where);
}
inline int __any_sync(unsigned mask, int predicate, Where where = Where::current()) {
  return int(fold_lanes(mask, unsigned(predicate != 0), FoldOr{}, "__any_sync", where));
}
inline int __all_sync(unsigned mask, int predicate, Where where = Where::current()) {
  return int(fold_lanes(mask, unsigned(predicate != 0), FoldAnd{}, "__all_sync", where));
}

// Which lanes have the same value as this one. 4 or 8 bytes, compared as bits.
template <class T>
unsigned __match_any_sync(unsigned mask, T value, Where where = Where::current()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  require(70, "__match_any_sync", where);
  struct Operands {
    T value;
    unsigned same;
  } mine{value, 0};
  warp_rendezvous(
      mask, &mine,
      [](void* const* lanes) {
        for_each_lane<Operands>(lanes, [&](int, Operands& to) {
          for_each_lane<Operands>(lanes, [&](int lane, const Operands& from) {
            if (std::memcmp(&to.value, &from.value, sizeof(T)) == 0) to.same |= 1u << lane;
          });
        });
      },
      "__match_any_sync", where);
  return mine.same;
}
// The lanes that take part when all have the same value, and then *same is true; else 0.
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* same, Where where = Where::current()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  struct Operands {
    T value;
    unsigned lanes;
  } mine{value, 0};
  warp_rendezvous(
      mask, &mine,
      [](void* const* lanes) {
        const Operands* first = nullptr;
        unsigned all = 0;
        bool equal = true;
        for_each_lane<Operands>(lanes, [&](int lane, const Operands& one) {
          if (!first) first = &one;
          equal &= std::memcmp(&first->value, &one.value, sizeof(T)) == 0;
          all |= 1u << lane;
        });
        for_each_lane<Operands>(lanes, [&](int, Operands& one) { one.lanes = equal ? all : 0; });
      },
      "__match_all_sync", where);
  *same = mine.lanes != 0;
  return mine.lanes;
}

// From sm_80 on: __reduce_add_sync, min and max of int and unsigned, and, or, xor of unsigned.
template <class T>
requires(std::is_same_v<T, int> || std::is_same_v<T, unsigned>) T
    __reduce_add_sync(unsigned mask, T value, Where where = Where::current()) {
  require(80, "__reduce_add_sync", where);
  return fold_lanes(mask, value, FoldSum{}, "__reduce_add_sync", where);
}
template <class T>
requires(std::is_same_v<T, int> || std::is_same_v<T, unsigned>) T
    __reduce_min_sync(unsigned mask, T value, Where where = Where::current()) {
  require(80, "__reduce_min_sync", where);
  return fold_lanes(mask, value, FoldMin{}, "__reduce_min_sync", where);
}
template <class T>
requires(std::is_same_v<T, int> || std::is_same_v<T, unsigned>) T
    __reduce_max_sync(unsigned mask, T value, Where where = Where::current()) {
  require(80, "__reduce_max_sync", where);
  return fold_lanes(mask, value, FoldMax{}, "__reduce_max_sync", where);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, Where where = Where::current()) {
  require(80, "__reduce_and_sync", where);
  return fold_lanes(mask, value, FoldAnd{}, "__reduce_and_sync", where);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, Where where = Where::current()) {
  require(80, "__reduce_or_sync", where);
  return fold_lanes(mask, value, FoldOr{}, "__reduce_or_sync", where);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, Where where = Where::current()) {
  require(80, "__reduce_xor_sync", where);
  return fold_lanes(mask, value, FoldXor{}, "__reduce_xor_sync", where);
}

}  // namespace tessera::simt
