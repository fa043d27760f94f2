// cp.async: a thread copies 4, 8 or 16 bytes from global to shared memory and goes on. Copies are
// gathered into groups; a wait is for the groups of the thread itself, other threads see the bytes
// after a barrier that follows the wait. (PTX ISA, "cp.async", "cp.async.commit_group",
// "cp.async.wait_group".) sm_80 and up.
//
//   cp_async16(shared, global, bytes)   copies `bytes` of 16 and fills up with zeros; where these
//                                       are 0, global may be anywhere. Both addresses are multiples
//                                       of 16. Bypasses L1 (.cg), and hints that L2 fetch the whole
//                                       line of 128 bytes: a stage takes a part of its lines, the
//                                       next ones the rest. cp_async4 and cp_async8 go through L1
//                                       (.ca).
//   cp_async_commit()                   what was issued since the last commit becomes a group
//   cp_async_wait<n>()                  until all groups but the last n have arrived
//   cp_async_wait_all()                 until all copies have, committed or not
//
// On the host model the destination is undefined from the issue on, and the copy (source read,
// destination written) takes place at a moment of options().landing's choice: at the issue
// (Earliest), in the wait that covers it (Latest; never if there is none), or anywhere between that
// the thread is suspended (Random). A missing wait and a stage that is filled again while it is
// still read are thus seen as arithmetic on uninitialised values.
#pragma once

#ifndef TESSERA_GPU
#include "core/simt/trace.h"
#endif
#include "kernels/cuda/ptx/common.h"

namespace tessera::TESSERA_CUDA::ptx {

#ifdef TESSERA_GPU

template <int size>
__device__ __forceinline__ void cp_async(void* shared, const void* global, int bytes) {
#if __CUDA_ARCH__ >= 800
  if constexpr (size == 16)
    asm volatile(
        "cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
        "l"(__cvta_generic_to_global(global)), "r"(bytes)
        : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "n"(size), "r"(bytes)
                 : "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void cp_async16(void* shared, const void* global, int bytes = 16) {
  cp_async<16>(shared, global, bytes);
}
__device__ __forceinline__ void cp_async8(void* shared, const void* global, int bytes = 8) {
  cp_async<8>(shared, global, bytes);
}
__device__ __forceinline__ void cp_async4(void* shared, const void* global, int bytes = 4) {
  cp_async<4>(shared, global, bytes);
}

__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  __trap();
#endif
}
template <int n>
__device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void cp_async_wait_all() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#else
  __trap();
#endif
}

#else

// The copies that a thread has in flight.
class Copies final : public InFlight {
 public:
  void issue(void* to, const void* from, int size, int bytes) {
    const Copy copy{to, from, size, bytes, group_};
    const Landing landing = current_grid().options.landing;
    fill_undefined(to, size_t(size));
    if (landing == Landing::Earliest || (landing == Landing::Random && random_choice() % 4 == 0))
      return land(copy);
    copies_.push_back(copy);
  }
  void commit() { ++group_; }
  // All but the last n groups arrive; n < 0: the one that is not committed yet, too.
  void wait(int n) {
    land_if([&](const Copy& copy) { return n < 0 || copy.group < group_ - n; });
  }
  void suspended() override {
    land_if([](const Copy&) { return random_choice() % 4 == 0; });
  }
  void ended() override { expect_none_left(copies_.size(), "cp.async"); }

 private:
  struct Copy {
    void* to;
    const void* from;
    int size, bytes;
    int64_t group;
  };
  static void land(const Copy& copy) {
    if (copy.bytes) std::memcpy(copy.to, copy.from, size_t(copy.bytes));
    std::memset(static_cast<std::byte*>(copy.to) + copy.bytes, 0, size_t(copy.size - copy.bytes));
    note_copied(copy.to, size_t(copy.size));
  }
  template <class Lands>
  void land_if(Lands lands) {
    std::erase_if(copies_, [&](const Copy& copy) {
      const bool now = lands(copy);
      if (now) land(copy);
      return now;
    });
  }

  std::vector<Copy> copies_;
  int64_t group_ = 0;
};

template <int size>
void cp_async(void* shared, const void* global, int bytes, const char* name, Where where) {
  require(80, name, where);
  check_shared(shared, size, size, name, where);
  if (reinterpret_cast<uintptr_t>(global) % size)
    fault(concat("misaligned address: ", name, " from ", global, ", not a multiple of ", size),
          where);
  if (bytes && is_shared(global, 1))
    fault(concat(name, " from ", global, ", which is in this block's shared memory"), where);
  if (bytes < 0 || bytes > size) fault(concat(name, " of ", bytes, " bytes"), where);
  if (bytes) count_access(kCopied, global, size_t(bytes));
  count(kFilled, size);
  in_flight<Copies>().issue(shared, global, size, bytes);
}
inline void cp_async16(void* shared, const void* global, int bytes = 16,
                       Where where = Where::current()) {
  cp_async<16>(shared, global, bytes, "cp.async.16", where);
}
inline void cp_async8(void* shared, const void* global, int bytes = 8,
                      Where where = Where::current()) {
  cp_async<8>(shared, global, bytes, "cp.async.8", where);
}
inline void cp_async4(void* shared, const void* global, int bytes = 4,
                      Where where = Where::current()) {
  cp_async<4>(shared, global, bytes, "cp.async.4", where);
}

inline void cp_async_commit(Where where = Where::current()) {
  require(80, "cp.async.commit_group", where);
  in_flight<Copies>().commit();
}
template <int n>
void cp_async_wait(Where where = Where::current()) {
  static_assert(n >= 0);
  require(80, "cp.async.wait_group", where);
  in_flight<Copies>().wait(n);
}
inline void cp_async_wait_all(Where where = Where::current()) {
  require(80, "cp.async.wait_all", where);
  in_flight<Copies>().wait(-1);
}

#endif

}  // namespace tessera::TESSERA_CUDA::ptx
