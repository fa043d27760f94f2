#include "core/simt/runner.h"

#include <immintrin.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <thread>

namespace tessera::simt {

constinit thread_local Thread* current_thread = nullptr;
Watch* watch = nullptr;

namespace {

constexpr size_t kSharedAlignment = 1024;
// A block in which threads do nothing but poll, this often each, hangs.
constexpr size_t kPollsARound = 4;
constexpr int kRounds = 250;
constexpr size_t kSpent = 2048;  // fibers kept for the launch after this
constexpr const char* kPreempted = "an atomic";
// From one thread's stack to the next one's, in the same order. Sanitizers follow the way by the
// stack outside.
constexpr bool kDirectly = !kAddressSanitizer && !kThreadSanitizer;

std::string text_of(const uint3& i) { return concat('(', i.x, ',', i.y, ',', i.z, ')'); }

// The sticky flag of SSE alone: <cfenv> looks at the x87, too, and takes ten times as long.
void clear_invalid_flag() { _mm_setcsr(_mm_getcsr() & ~unsigned{_MM_EXCEPT_INVALID}); }

std::string place_of(const Thread& thread) {
  return concat("kernel ", short_name(thread.block->grid().kernel), ", block ",
                text_of(thread.block->index()), ", thread ", text_of(thread.thread_idx));
}
// ThreadSanitizer keeps 64 characters.
std::string timeline_name(const Thread& thread) {
  std::string kernel = short_name(thread.block->grid().kernel);
  const size_t qualified = kernel.substr(0, kernel.find('<')).rfind("::");
  if (qualified != std::string::npos) kernel.erase(0, qualified + 2);
  return concat("block ", text_of(thread.block->index()), ", thread ", text_of(thread.thread_idx),
                ", kernel ", kernel);
}
std::string place(const Thread& thread, Where where) {
  return concat(place_of(thread), " (", line_of(where), ")");
}

}  // namespace

std::string line_of(const Where& where) { return concat(where.file, ":", where.line); }

// Of "... [with ...; void (* Kernel)(P ...) = tessera::simt::conv2d_kernel<float>]".
std::string short_name(const char* pretty) {
  const std::string text = pretty;
  const size_t at = text.rfind(" = ");
  if (at == std::string::npos) return text;
  return text.substr(at + 3, text.size() - at - 4);
}

std::string current_place() { return current_thread ? place_of(self()) : std::string(); }

void fault(const std::string& message, Where where) {
  const Unwatched scope;
  throw Fault(concat(message, ": ", place(self(), where)));
}

void expect_none_left(size_t operations, const char* name) {
  if (operations)
    fault(concat("the thread ends with ", operations, ' ', name, " that it has not waited for"));
}

void fill_undefined(void* memory, size_t bytes) {
  constexpr uint64_t pattern = 0x7FBF7FBF7FBF7FBF;
  auto* const p = static_cast<std::byte*>(memory);
  size_t i = 0;
  for (; i + 8 <= bytes; i += 8) std::memcpy(p + i, &pattern, 8);
  std::memcpy(p + i, &pattern, bytes - i);
}

void Block::run(const Grid& grid, uint64_t index) {
  start(grid, index);
  RunningGrid& running = *grid.running;
  ++running.live;
  bool stuck = false;
  int rounds = 0, live = 0;
  try {
    for (uint64_t events = 0; !advance(); events = events_) {
      if (!polls()) report_deadlock();
      // What it waits for may come from a block on another host thread.
      if (events_ != events || running.live != live) {
        live = running.live;
        rounds = 0;
        if (std::exchange(stuck, false)) --running.stuck;
      }
      if (++rounds < kRounds) continue;
      if (!std::exchange(stuck, true)) ++running.stuck;
      if (running.stuck < running.live)
        rounds = kRounds - 2;  // look twice
      else if (rounds > kRounds)
        report_deadlock();
      std::this_thread::yield();
    }
  } catch (...) {
    running.stuck -= stuck;
    --running.live;
    cancel();
    throw;
  }
  running.stuck -= stuck;
  --running.live;
}

void Block::start(const Grid& grid, uint64_t index, Cluster* cluster) {
  grid_ = &grid;
  cluster_ = cluster;
  const uint64_t row = index / grid.grid.x;
  index_ = {unsigned(index % grid.grid.x), unsigned(row % grid.grid.y),
            unsigned(row / grid.grid.y)};
  random_state_ = grid.options.seed * 0x9E3779B97F4A7C15 ^ index;
  const size_t count = grid.block.count();
  threads_.assign(count, {});
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = threads_[i];
    thread.linear = i;
    thread.block = this;
    thread.thread_idx = {i % grid.block.x, i / grid.block.x % grid.block.y,
                         i / grid.block.x / grid.block.y};
  }
  order_.resize(count);
  std::iota(order_.begin(), order_.end(), 0u);
  if (grid.options.order == Order::Descending) std::reverse(order_.begin(), order_.end());
  if (random_order())
    for (size_t i = count; i-- > 1;)
      std::swap(order_[i], order_[next_random(random_state_) % (i + 1)]);
  started_ = done_ = 0;
  events_ = 0;
  error_ = nullptr;
  cancelled_ = false;
  ready_.clear();
  cluster_waiting_.clear();
  steps_.clear();
  for (Barrier& barrier : barriers_) {
    barrier.waiting.clear();
    barrier.arrived = 0;
    std::fill(std::begin(barrier.came), std::end(barrier.came), 0);
  }
  meetings_.assign((count + 31) / 32, {});
  if (kThreadSanitizer) reuse_spent();
  make_arena();
}

void Block::FreeArena::operator()(std::byte* memory) const { std::free(memory); }

// Shared memory between redzones. ThreadSanitizer would take the next block's use of the same
// bytes for a race: it gets new memory for every block.
void Block::make_arena() {
  const size_t bytes = grid_->shared_bytes;
  const size_t needed = (bytes + 2 * std::max(kRedzone, kSharedAlignment) + kSharedAlignment - 1) /
                        kSharedAlignment * kSharedAlignment;
  if (!arena_ || arena_bytes_ < needed || kThreadSanitizer) {
    arena_.reset();
    arena_.reset(static_cast<std::byte*>(std::aligned_alloc(kSharedAlignment, needed)));
    ENSURE(arena_, "no memory for ", bytes, " bytes of shared memory");
    arena_bytes_ = needed;
  }
  shared_ = arena_.get() + std::max(kRedzone, kSharedAlignment);
  poison_memory(arena_.get(), arena_bytes_);
  unpoison_memory(shared_, bytes);
  fill_undefined(shared_, bytes);
  copied_.clear();
}

bool Block::advance() {
  const Unwatched scope;
  polls_ = 0;
  choose_next();
  while (!error_ && done_ < threads_.size()) {
    if (next_)
      resume(*std::exchange(next_, nullptr));
    else if (started_ < threads_.size())
      start_fiber();
    else
      return false;
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  check_steps();
  return true;
}

void Block::start_fiber() {
  if (idle_.empty() && spent_.size() >= kSpent) {
    idle_.push_back(spent_.back());
    spent_.pop_back();
    idle_.back()->fiber.reset();
  }
  if (idle_.empty()) {
    fibers_.push_back(std::make_unique<FiberOf>(FiberOf{this, nullptr}));
    idle_.push_back(fibers_.back().get());
  }
  FiberOf& mine = *idle_.back();
  idle_.pop_back();
  if (!mine.fiber)
    mine.fiber = std::make_unique<Fiber>(
        [](void* argument) {
          auto& mine = *static_cast<FiberOf*>(argument);
          mine.block->run_fiber(mine);
        },
        &mine);
  if (kThreadSanitizer) set_timeline(*mine.fiber, threads_[order_[started_]]);
  mine.fiber->resume();
}

// ThreadSanitizer sees every CUDA thread of a launch as one of its own, and takes a millisecond to
// make one. A launch comes after the one before it in its stream, and may have its threads. Those
// of other streams are kept for these: the sanitizer would give a new thread the number of one that
// is gone, and take the two for one.
void Block::reuse_spent() {
  const Unwatched scope;
  if (spent_by_ == grid_->running->number) return;
  spent_by_ = grid_->running->number;
  idle_.insert(idle_.end(), spent_.begin(), spent_.end());
  spent_.clear();
  if (spent_on_ == current_line) return;
  parked_[spent_on_] = std::move(idle_);
  spent_on_ = current_line;
  idle_ = std::move(parked_[spent_on_]);
  parked_.erase(spent_on_);
  size_t parked = 0;
  for (const auto& [line, fibers] : parked_) parked += fibers.size();
  if (parked <= kSpent) return;
  for (const auto& [line, fibers] : parked_) {
    for (FiberOf* const one : fibers) one->fiber.reset();
    idle_.insert(idle_.begin(), fibers.begin(), fibers.end());
  }
  parked_.clear();
}

void Block::set_timeline(Fiber& fiber, const Thread& thread) const {
  if (!fiber.timeline) {
    fiber.timeline = Timeline(timeline_name(thread));
  } else {
    fiber.timeline.rename(timeline_name(thread));
    grid_->running->begin.acquire_as(fiber.timeline);
  }
}

void Block::resume(Thread& thread) {
  current_thread = &thread;
  thread.fiber->resume();
}

// Runs one thread after the other until one of them waits; goes on when that one is woken.
void Block::run_fiber(FiberOf& mine) {
  do {
    {
      const Unwatched scope;
      while (Thread* thread = error_ || cancelled_ ? nullptr : next_unstarted()) {
        thread->fiber = mine.fiber.get();
        run_thread(*thread);
        if (kThreadSanitizer || !ready_.empty()) break;
      }
      (kThreadSanitizer ? spent_ : idle_).push_back(&mine);
      current_thread = nullptr;
      choose_next();
    }
    mine.fiber->suspend();
  } while (true);
}

// None where advance() is to start another thread first: half the time in random order, and where
// somebody polls, perhaps for what that thread does.
void Block::choose_next() {
  next_ = nullptr;
  if (error_ || cancelled_ || ready_.empty()) return;
  if (polls_ > kPollsARound * (threads_.size() - done_)) return;
  const bool run_ahead = random_order() ? next_random(random_state_) % 2 : polls_ == 0;
  if (started_ < threads_.size() && !run_ahead) return;
  if (random_order()) std::swap(ready_.front(), ready_[next_random(random_state_) % ready_.size()]);
  next_ = ready_.front();
  ready_.pop_front();
  if (!ready_.empty()) ready_.front()->fiber->prefetch();
}

Thread* Block::next_unstarted() {
  return started_ < threads_.size() ? &threads_[order_[started_++]] : nullptr;
}

void Block::run_thread(Thread& thread) {
  current_thread = &thread;
  happened();
  try {
    if (grid_->options.trap_uninitialised) clear_invalid_flag();
    {
      const Watched scope;
      grid_->body(grid_->arguments);
    }
    for (const auto& family : thread.in_flight) family->ended();
    if (grid_->overlaps && !thread.begun)
      fault("the thread ends and has not waited for the kernel before, which may still run");
    check_arithmetic("its end");
    note_write("its end");
  } catch (const Cancelled&) {
  } catch (...) {
    if (!error_) error_ = std::current_exception();
  }
  grid_->running->end.release();
  thread.done = true;
  thread.in_flight.clear();
  ++done_;
  happened();
}

void Block::cancel() {
  const Unwatched scope;
  error_ = nullptr;
  cancelled_ = true;
  for (Thread& thread : threads_)
    if (thread.fiber && !thread.done) resume(thread);
  error_ = nullptr;
  current_thread = nullptr;
}

void Block::check_arithmetic(const char* before) const {
  if (!grid_->options.trap_uninitialised || !(_mm_getcsr() & _MM_EXCEPT_INVALID)) return;
  clear_invalid_flag();
  fault(concat("arithmetic on an uninitialised value, before ", before));
}

void Block::note_write(const char* before) const {
  if (!watch || *watch->address == watch->value) [[likely]]
    return;
  watch->value = *watch->address;
  watch->writer = concat(place_of(self()), ", before ", before);
}

void Block::suspend(const char* waits_for, Where where) {
  check_arithmetic(waits_for);
  note_write(waits_for);
  Thread& thread = self();
  thread.waits_for = waits_for;
  thread.where = where;
  if (grid_->options.landing == Landing::Random && !thread.in_flight.empty()) {
    const Watched scope;
    for (const auto& family : thread.in_flight) family->suspended();
  }
  choose_next();
  if (next_ == &thread) {
    next_ = nullptr;
  } else if (next_ && kDirectly) {
    current_thread = std::exchange(next_, nullptr);
    thread.fiber->go_on_to(*current_thread->fiber);
  } else {
    thread.fiber->suspend();
  }
  thread.waits_for = nullptr;
  if (cancelled_) throw Cancelled{};
}

void Block::poll(const char* waits_for, Where where) {
  ++polls_;
  make_ready(self());
  suspend(waits_for, where);
}

void Block::preempt(Where where) {
  if (!random_order() || next_random(random_state_) % 4) return;
  make_ready(self());
  suspend(kPreempted, where);
}

void Block::report_deadlock() {
  const Thread *waiting = nullptr, *other = nullptr;
  for (const Thread& thread : threads_)
    if (thread.waits_for && (!waiting || waiting->waits_for == kPreempted)) waiting = &thread;
  for (const Thread& thread : threads_)
    if (thread.done || !same_place(thread.where, waiting->where)) other = &thread;
  std::string text = concat(polls() ? "deadlock: " : "divergence: ", waiting->waits_for,
                            " is never completed: ", place(*waiting, waiting->where));
  if (other)
    text += concat("; thread ", text_of(other->thread_idx),
                   other->done
                       ? std::string(" has ended")
                       : concat(" waits for ", other->waits_for, " at ", line_of(other->where)));
  throw Fault(text);
}

}  // namespace tessera::simt
