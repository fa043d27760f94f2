// A stack of its own to run code on, which can be left in the middle and entered again.
#pragma once

#include <cstddef>

#include "core/simt/sanitizer.h"

namespace tessera::simt {

class Fiber {
 public:
  // main(argument) starts with the first resume(). Throws Error when there is no memory for a
  // stack.
  Fiber(void (*main)(void*), void* argument);
  // Nothing is unwound: main has ended, or is suspended with nothing on its stack to destroy.
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // From outside: runs the fiber until it suspends or main ends, or one that took its place does.
  void resume();
  // From inside: goes back to where resume() was called.
  void suspend();
  // From inside: suspends, and another that is suspended takes its place. Not with a sanitizer.
  void go_on_to(Fiber& next);
  // It is about to run: the top of its stack is loaded from memory meanwhile.
  void prefetch() const { __builtin_prefetch(inside_); }

  Timeline timeline;  // that the code inside runs as

 private:
  friend struct FiberEntry;

  std::byte* stack_;  // lowest address
  void* inside_;      // where to go on
  void* outside_ = nullptr;
  Fiber* left_ = nullptr;  // that this one took the place of; null: it was resumed from outside
  void (*main_)(void*);
  void* argument_;
  bool ended_ = false;
  // For the sanitizers: how the world outside is called.
  [[maybe_unused]] void* outside_timeline_ = nullptr;
  [[maybe_unused]] const void* outside_stack_ = nullptr;
  [[maybe_unused]] size_t outside_stack_bytes_ = 0;
};

}  // namespace tessera::simt
