// Atomics on integers, and fences. Relaxed, as CUDA's are. Atomics on floats are deliberately
// absent: their sums differ from run to run.
#pragma once

#include <atomic>
#include <concepts>

#include "core/simt/block.h"

namespace tessera::simt {

template <class T>
concept AtomicInteger =
    std::same_as<T, int> || std::same_as<T, unsigned> || std::same_as<T, unsigned long long>;

// The word for one access of the current thread, before which others may run.
template <class T>
std::atomic_ref<T> atomic_word(T* address, Where where) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T))
    fault(concat("misaligned atomic on ", sizeof(T), " bytes at ", address), where);
  preemption_point(where);
  return std::atomic_ref<T>(*address);
}

// Stores f(old) and returns old.
template <AtomicInteger T, class F>
T atomic_update(T* address, Where where, F f) {
  const auto word = atomic_word(address, where);
  T old = word.load(std::memory_order_relaxed);
  while (!word.compare_exchange_weak(old, f(old), std::memory_order_relaxed)) {
  }
  return old;
}

// All return what was there before.
template <AtomicInteger T>
T atomicAdd(T* address, std::type_identity_t<T> value, Where where = Where::current()) {
  return atomic_word(address, where).fetch_add(value, std::memory_order_relaxed);
}
float atomicAdd(float*, float) = delete;
template <AtomicInteger T>
T atomicSub(T* address, std::type_identity_t<T> value, Where where = Where::current()) {
  return atomic_word(address, where).fetch_sub(value, std::memory_order_relaxed);
}
template <AtomicInteger T>
T atomicExch(T* address, std::type_identity_t<T> value, Where where = Where::current()) {
  return atomic_word(address, where).exchange(value, std::memory_order_relaxed);
}
template <AtomicInteger T>
T atomicMax(T* address, std::type_identity_t<T> value, Where where = Where::current()) {
  return atomic_update(address, where, [=](T old) { return old < value ? value : old; });
}
template <AtomicInteger T>
T atomicMin(T* address, std::type_identity_t<T> value, Where where = Where::current()) {
  return atomic_update(address, where, [=](T old) { return value < old ? value : old; });
}
template <AtomicInteger T>
T atomicAnd(T* address, std::type_identity_t<T> value, Where where = Where::current()) {
  return atomic_word(address, where).fetch_and(value, std::memory_order_relaxed);
}
template <AtomicInteger T>
T atomicOr(T* address, std::type_identity_t<T> value, Where where = Where::current()) {
  return atomic_word(address, where).fetch_or(value, std::memory_order_relaxed);
}
template <AtomicInteger T>
T atomicXor(T* address, std::type_identity_t<T> value, Where where = Where::current()) {
  return atomic_word(address, where).fetch_xor(value, std::memory_order_relaxed);
}
// Old + 1, but 0 after `limit`.
inline unsigned atomicInc(unsigned* address, unsigned limit, Where where = Where::current()) {
  return atomic_update(address, where, [=](unsigned old) { return old >= limit ? 0 : old + 1; });
}
// Stores `value` where `expected` was.
template <AtomicInteger T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value,
            Where where = Where::current()) {
  atomic_word(address, where).compare_exchange_strong(expected, value, std::memory_order_relaxed);
  return expected;
}

// ThreadSanitizer does not know fences: there, what threads did before their fences is ordered as
// the fences are.
inline constexpr char every_fence = 0;
inline void fence_all() {
  std::atomic_signal_fence(std::memory_order_seq_cst);
#ifndef TESSERA_TSAN
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}
inline void acquire_fence() {
  order_acquire(&every_fence);
  fence_all();
}
inline void release_fence() {
  fence_all();
  order_release(&every_fence);
}
inline void fence() {
  acquire_fence();
  order_release(&every_fence);
}
inline void __threadfence() { fence(); }
inline void __threadfence_block() { fence(); }
inline void __threadfence_system() { fence(); }

}  // namespace tessera::simt
