// mbarrier: barriers that lie in shared memory. A phase is complete when `count` arrivals came and
// all bytes that were announced (expect_tx) were delivered; the next phase begins at once. Who
// waits names a phase by its parity: the first is 0. A barrier that was just initialised answers
// for parity 1, the phase before the first, that it is complete. What threads wrote before they
// arrived is seen by those who waited. (PTX ISA, "mbarrier".) sm_80 and up, bytes and try_wait
// sm_90 and up.
//
//   mbarrier_init(b, count)                one thread; the others after a barrier of the block
//   mbarrier_arrive(b)
//   mbarrier_arrive_expect_tx(b, bytes)    announces bytes of this phase, then arrives
//   mbarrier_complete_tx(b, bytes)         delivers bytes, as a bulk copy does
//   mbarrier_test_wait(b, parity)          whether that phase is complete; does not wait
//   mbarrier_try_wait(b, parity)           the same, and may wait a while
//   mbarrier_wait(b, parity)               until that phase is complete
//   mbarrier_invalidate(b)                 before the memory is used for something else
//
// On the host model polling lets other threads run.
#pragma once

#include "kernels/cuda/ptx/common.h"

#ifndef TESSERA_GPU
#include "core/simt/sanitizer.h"
#endif

namespace tessera::TESSERA_CUDA::ptx {

#ifdef TESSERA_GPU

struct Mbarrier {
  uint64_t opaque;
};

__device__ __forceinline__ void mbarrier_init(Mbarrier* b, int count) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count)
               : "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void mbarrier_invalidate(Mbarrier* b) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mbarrier.inval.shared.b64 [%0];" ::"r"(shared_address(b)) : "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void mbarrier_arrive(Mbarrier* b) {
#if __CUDA_ARCH__ >= 800
  asm volatile("{\n\t.reg .b64 state;\n\tmbarrier.arrive.shared.b64 state, [%0];\n\t}" ::"r"(
                   shared_address(b))
               : "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void mbarrier_arrive_expect_tx(Mbarrier* b, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(b)),
               "r"(bytes)
               : "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void mbarrier_complete_tx(Mbarrier* b, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.complete_tx.shared::cta.relaxed.cta.b64 [%0], %1;" ::"r"(shared_address(b)),
      "r"(bytes)
      : "memory");
#else
  __trap();
#endif
}

#define TESSERA_POLL(instruction)                                              \
  int complete;                                                                \
  asm volatile("{\n\t.reg .pred p;\n\t" instruction                            \
               ".parity.shared.b64 p, [%1], %2;\n\tselp.s32 %0, 1, 0, p;\n\t}" \
               : "=r"(complete)                                                \
               : "r"(shared_address(b)), "r"(parity)                           \
               : "memory");                                                    \
  return complete != 0;

__device__ __forceinline__ bool mbarrier_test_wait(Mbarrier* b, int parity) {
#if __CUDA_ARCH__ >= 800
  TESSERA_POLL("mbarrier.test_wait")
#else
  __trap();
  return false;
#endif
}
__device__ __forceinline__ bool mbarrier_try_wait(Mbarrier* b, int parity) {
#if __CUDA_ARCH__ >= 900
  TESSERA_POLL("mbarrier.try_wait")
#else
  __trap();
  return false;
#endif
}

#undef TESSERA_POLL

__device__ __forceinline__ void mbarrier_wait(Mbarrier* b, int parity) {
#if __CUDA_ARCH__ >= 900
  while (!mbarrier_try_wait(b, parity)) {
  }
#else
  while (!mbarrier_test_wait(b, parity)) {
  }
#endif
}

#else

struct Mbarrier {
  uint64_t count : 20;    // arrivals of a phase
  uint64_t pending : 20;  // that the current one lacks
  int64_t bytes : 21;     // announced and not delivered
  uint64_t parity : 1;    // of the current phase
  uint64_t valid : 2;     // kValid after init
};
static_assert(sizeof(Mbarrier) == 8);
inline constexpr uint64_t kValid = 2;  // memory that was never written has 1 there

inline constexpr int kMostArrivals = (1 << 20) - 1, kMostBytes = (1 << 20) - 1;

// An operation on a barrier: checks it, and keeps the sanitizers from taking the barrier's own
// memory for the program's. Arrivals come before what those do who waited.
class MbarrierOperation {
 public:
  MbarrierOperation(Mbarrier* b, int capability, const char* name, Where where)
      : b_(b), name_(name), where_(where) {
    require(capability, name, where);
    check_shared(b, sizeof(Mbarrier), alignof(Mbarrier), name, where);
  }
  void check_valid() const {
    if (b_->valid != kValid) fault(concat(name_, " on a barrier that is not initialised"), where_);
  }
  void initialise(int count) const {
    if (count < 1 || count > kMostArrivals)
      fault(concat(name_, " for ", count, " arrivals"), where_);
    *b_ = {uint64_t(count), uint64_t(count), 0, 0, kValid};
  }
  void invalidate() const { fill_undefined(b_, sizeof(Mbarrier)); }
  void arrive() const {
    if (b_->pending == 0)
      fault(concat(name_, ": more than ", b_->count, " arrivals in a phase"), where_);
    b_->pending -= 1;
    complete_phase();
  }
  // Announces bytes; delivers them when there are less than 0.
  void expect(int bytes) const {
    const int64_t sum = b_->bytes + bytes;
    if (std::abs(sum) > kMostBytes) fault(concat(name_, ": ", sum, " bytes in flight"), where_);
    b_->bytes = sum;
    if (bytes < 0) complete_phase();
  }
  bool is_complete(int parity) const {
    check_valid();
    if (parity != 0 && parity != 1) fault(concat(name_, " for parity ", parity), where_);
    if (b_->parity == uint64_t(parity)) return false;
    order_acquire(b_);
    return true;
  }

 private:
  void complete_phase() const {
    order_release(b_);
    if (b_->pending || b_->bytes) return;
    b_->pending = b_->count;
    b_->parity ^= 1;
    note_progress();
  }

  const Unwatched unwatched_;
  Mbarrier* b_;
  const char* name_;
  Where where_;
};

// Whether a phase is complete, now or after the others had a turn: that is outside of the
// operation, where ThreadSanitizer watches the copies that land when a thread waits.
inline bool poll(Mbarrier* b, int capability, const char* name, int parity, Where where) {
  if (MbarrierOperation(b, capability, name, where).is_complete(parity)) return true;
  yield_thread(name, where);
  return MbarrierOperation(b, capability, name, where).is_complete(parity);
}

inline void mbarrier_init(Mbarrier* b, int count, Where where = Where::current()) {
  MbarrierOperation(b, 80, "mbarrier.init", where).initialise(count);
}
inline void mbarrier_invalidate(Mbarrier* b, Where where = Where::current()) {
  const MbarrierOperation operation(b, 80, "mbarrier.inval", where);
  operation.check_valid();
  operation.invalidate();
}
inline void mbarrier_arrive(Mbarrier* b, Where where = Where::current()) {
  const MbarrierOperation operation(b, 80, "mbarrier.arrive", where);
  operation.check_valid();
  operation.arrive();
}
inline void mbarrier_arrive_expect_tx(Mbarrier* b, int bytes, Where where = Where::current()) {
  const MbarrierOperation operation(b, 90, "mbarrier.arrive.expect_tx", where);
  operation.check_valid();
  operation.expect(bytes);
  operation.arrive();
}
inline void mbarrier_complete_tx(Mbarrier* b, int bytes, Where where = Where::current()) {
  const MbarrierOperation operation(b, 90, "mbarrier.complete_tx", where);
  operation.check_valid();
  operation.expect(-bytes);
}
inline bool mbarrier_test_wait(Mbarrier* b, int parity, Where where = Where::current()) {
  return poll(b, 80, "mbarrier.test_wait", parity, where);
}
inline bool mbarrier_try_wait(Mbarrier* b, int parity, Where where = Where::current()) {
  return poll(b, 90, "mbarrier.try_wait", parity, where);
}
inline void mbarrier_wait(Mbarrier* b, int parity, Where where = Where::current()) {
  if (current_grid().options.profile.capability >= 90)
    while (!mbarrier_try_wait(b, parity, where)) {
    }
  else
    while (!mbarrier_test_wait(b, parity, where)) {
    }
}

#endif

}  // namespace tessera::TESSERA_CUDA::ptx
