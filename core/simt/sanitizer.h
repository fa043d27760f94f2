// What AddressSanitizer and ThreadSanitizer are told about fibers, redzones and the order of CUDA's
// threads. In a build without them all of it is empty.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

// g++ defines a macro for each, clang answers a question.
#ifndef __has_feature
#define __has_feature(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define TESSERA_ASAN
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define TESSERA_TSAN
#endif

// Of functions that change the stack under ThreadSanitizer's own stack of calls, on which they must
// not be, either: with clang's no_sanitize they still were.
#ifdef __clang__
#define TESSERA_UNSANITIZED __attribute__((disable_sanitizer_instrumentation, noinline))
#else
#define TESSERA_UNSANITIZED __attribute__((no_sanitize("thread"), no_sanitize("address"), noinline))
#endif

#ifdef TESSERA_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef TESSERA_TSAN
extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_ignore_thread_begin();
void __tsan_ignore_thread_end();
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_set_fiber_name(void* fiber, const char* name);
}
#endif

namespace tessera::simt {

#ifdef TESSERA_ASAN
inline constexpr bool kAddressSanitizer = true;
inline void poison_memory(const void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
inline void unpoison_memory(const void* p, size_t bytes) {
  __asan_unpoison_memory_region(p, bytes);
}
#else
inline constexpr bool kAddressSanitizer = false;
inline void poison_memory(const void*, size_t) {}
inline void unpoison_memory(const void*, size_t) {}
#endif
// Poisoned bytes on both sides of device allocations and of shared memory.
inline constexpr size_t kRedzone = kAddressSanitizer ? 4096 : 0;

#ifdef TESSERA_TSAN
inline constexpr bool kThreadSanitizer = true;

// One line of execution for ThreadSanitizer: a CUDA thread, a stream, a node of a graph. What two
// of them do is unordered unless a SyncPoint orders it; a new one comes after what its maker did.
class Timeline {
 public:
  Timeline() = default;
  explicit Timeline(const std::string& name) : handle_(__tsan_create_fiber(0)), number_(++made) {
    rename(name);
  }
  Timeline(Timeline&& other) noexcept
      : handle_(std::exchange(other.handle_, nullptr)), number_(other.number_) {}
  Timeline& operator=(Timeline&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(number_, other.number_);
    return *this;
  }
  ~Timeline() {
    if (handle_) __tsan_destroy_fiber(handle_);
  }
  void rename(const std::string& name) const { __tsan_set_fiber_name(handle_, name.c_str()); }
  explicit operator bool() const { return handle_; }
  void* handle() const { return handle_; }
  uint64_t number() const { return number_; }  // from 1, no other ever has it

 private:
  static inline std::atomic<uint64_t> made = 0;
  void* handle_ = nullptr;
  uint64_t number_ = 0;
};
inline thread_local uint64_t current_line = 0;  // number of the timeline of As, 0: outside of any

// Code of the scope runs as another timeline, on the stack of this one: Unwatched but for what it
// marks as Watched. The calls would begin on one line's stack of calls and end on another's.
class As {
 public:
  TESSERA_UNSANITIZED explicit As(const Timeline& timeline)
      : before_(__tsan_get_current_fiber()),
        line_before_(std::exchange(current_line, timeline.number())) {
    __tsan_switch_to_fiber(timeline.handle(), 1);
    __tsan_ignore_thread_begin();
  }
  TESSERA_UNSANITIZED ~As() {
    __tsan_ignore_thread_end();
    __tsan_switch_to_fiber(before_, 1);
    current_line = line_before_;
  }
  As(const As&) = delete;

 private:
  void* before_;
  uint64_t line_before_;
};

// acquire() comes after every release() before it.
class SyncPoint {
 public:
  void release() const { __tsan_release(place_.get()); }
  void acquire() const { __tsan_acquire(place_.get()); }
  void acquire_as(const Timeline& timeline) const {
    void *const before = __tsan_get_current_fiber(), *const place = place_.get();
    __tsan_switch_to_fiber(timeline.handle(), 1);
    __tsan_acquire(place);
    __tsan_switch_to_fiber(before, 1);
  }
  void renew() { place_ = std::make_shared<char>(); }  // forgets what was released

 private:
  std::shared_ptr<char> place_ = std::make_shared<char>();
};

// Memory accesses of the scope are the host model's own, not the program's.
struct Unwatched {
  Unwatched() { __tsan_ignore_thread_begin(); }
  ~Unwatched() { __tsan_ignore_thread_end(); }
  Unwatched(const Unwatched&) = delete;
};
// The program's again, inside of an Unwatched scope.
struct Watched {
  Watched() { __tsan_ignore_thread_end(); }
  ~Watched() { __tsan_ignore_thread_begin(); }
  Watched(const Watched&) = delete;
};
#else
inline constexpr bool kThreadSanitizer = false;

struct Timeline {
  Timeline() = default;
  explicit Timeline(const std::string&) {}
  void rename(const std::string&) const {}
  explicit operator bool() const { return true; }
};
inline constexpr uint64_t current_line = 0;
struct As {
  explicit As(const Timeline&) {}
  ~As() {}
};
struct SyncPoint {
  void release() const {}
  void acquire() const {}
  void acquire_as(const Timeline&) const {}
  void renew() {}
};
struct Unwatched {
  Unwatched() {}
  ~Unwatched() {}
};
struct Watched {
  Watched() {}
  ~Watched() {}
};
#endif

}  // namespace tessera::simt
