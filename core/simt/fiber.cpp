#include "core/simt/fiber.h"

#include <sys/mman.h>

#include <boost/context/detail/fcontext.hpp>
#include <cstdlib>

#include "core/check.h"

namespace tessera::simt {
namespace {

namespace context = boost::context::detail;

constexpr size_t kGuardBytes = 4096;  // a page
// An odd number of pages: stacks a power of two apart would compete for a few places of the TLB.
constexpr size_t kStackBytes = 65 * kGuardBytes;

void free_stack(void* stack) {
  if (kThreadSanitizer) {
    mprotect(stack, kGuardBytes, PROT_READ | PROT_WRITE);
    return std::free(stack);
  }
  unpoison_memory(stack, kStackBytes);
  munmap(stack, kStackBytes);
}

// The lowest page of a stack must not be touched. Those of the thread sanitizer come from malloc,
// which makes it forget what earlier owners of the memory did.
std::byte* allocate_stack() {
  void* const memory = kThreadSanitizer ? std::aligned_alloc(kGuardBytes, kStackBytes)
                                        : mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  const bool given = memory && memory != MAP_FAILED;
  const bool guarded = given && mprotect(memory, kGuardBytes, PROT_NONE) == 0;
  if (given && !guarded) free_stack(memory);
  ENSURE(guarded, "no memory for the stack of a CUDA thread: too many are alive at once");
  unpoison_memory(memory, kStackBytes);
  return static_cast<std::byte*>(memory);
}

}  // namespace

struct FiberEntry {
  static void arrive(Fiber& fiber, context::transfer_t from) {
    (fiber.left_ ? fiber.left_->inside_ : fiber.outside_) = from.fctx;
  }
  TESSERA_UNSANITIZED static void enter(context::transfer_t from) {
    auto* const fiber = static_cast<Fiber*>(from.data);
    arrive(*fiber, from);
#ifdef TESSERA_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &fiber->outside_stack_, &fiber->outside_stack_bytes_);
#endif
    fiber->main_(fiber->argument_);
    fiber->ended_ = true;
    fiber->suspend();
  }
};

Fiber::Fiber(void (*main)(void*), void* argument)
    : stack_(allocate_stack()), main_(main), argument_(argument) {
  // Stacks begin at different places in their pages, or all would share a few cache lines.
  static thread_local size_t count = 0;
  const size_t offset = count++ % 32 * 192;
  inside_ = context::make_fcontext(stack_ + kStackBytes - offset,
                                   kStackBytes - kGuardBytes - offset, &FiberEntry::enter);
}

Fiber::~Fiber() { free_stack(stack_); }

TESSERA_UNSANITIZED void Fiber::resume() {
#ifdef TESSERA_ASAN
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack_, kStackBytes);
#endif
#ifdef TESSERA_TSAN
  outside_timeline_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(timeline.handle(), 1);
#endif
  left_ = nullptr;
  const context::transfer_t back = context::jump_fcontext(inside_, this);
  static_cast<Fiber*>(back.data)->inside_ = back.fctx;
#ifdef TESSERA_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

TESSERA_UNSANITIZED void Fiber::suspend() {
#ifdef TESSERA_ASAN
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(ended_ ? nullptr : &fake_stack, outside_stack_,
                                 outside_stack_bytes_);
#endif
#ifdef TESSERA_TSAN
  __tsan_switch_to_fiber(outside_timeline_, 1);
#endif
  FiberEntry::arrive(*this, context::jump_fcontext(outside_, this));
#ifdef TESSERA_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, &outside_stack_, &outside_stack_bytes_);
#endif
}

void Fiber::go_on_to(Fiber& next) {
  next.left_ = this;
  next.outside_ = outside_;
  FiberEntry::arrive(*this, context::jump_fcontext(next.inside_, &next));
}

}  // namespace tessera::simt
