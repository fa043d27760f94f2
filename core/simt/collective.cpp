// Where threads of a block meet: barriers, rendezvous of lanes, the cluster's barrier.
#include <algorithm>

#include "core/simt/runner.h"

namespace tessera::simt {

// A warp counts as 32 threads, also the last of a block, which may have fewer (PTX ISA, "barrier").
int Block::threads_of(unsigned warp) const {
  return int(std::min<size_t>(32, threads_.size() - size_t{warp} * 32));
}

unsigned Block::lanes_of(unsigned warp) const { return ~0u >> (32 - threads_of(warp)); }

void Block::add_arrival(Barrier& barrier) const {
  const unsigned warp = self().warp();
  const int all = threads_of(warp);
  int& came = barrier.came[warp];
  barrier.arrived += 1;
  if (++came < all) return;
  came = 0;
  barrier.arrived += 32 - all;
}

void Block::check_barrier(const Barrier& b, int id, int count, const char* name,
                          Where where) const {
  const int all = int(threads_.size() + 31) / 32 * 32, expected = count ? count : all;
  if (expected > all)
    fault(concat("barrier ", id, " for ", count, " threads in a block of ", threads_.size(),
                 ": is never completed"),
          where);
  if (b.arrived == 0 ||
      (b.expected == expected && (count || (same_place(b.where, where) && b.name == name))))
    return;
  fault(concat("divergent barriers: thread (", b.first->thread_idx.x, ",", b.first->thread_idx.y,
               ",", b.first->thread_idx.z, ") waits at ", line_of(b.where), " (", b.name, " of ",
               b.expected, " threads), this one comes to ", name, " of ", expected),
        where);
}

int Block::barrier(int id, int count, int predicate, bool wait, const char* name, Where where) {
  if (id < 0 || id > 15) fault(concat("barrier ", id, " does not exist: 0 to 15"), where);
  if (count % 32 || count < 0 || count > 1024 || (!wait && !count))
    fault(concat("barrier ", id, " for ", count, " threads: must be a multiple of 32"), where);
  Barrier& b = barriers_[id];
  check_barrier(b, id, count, name, where);
  if (b.arrived == 0) {
    b.expected = count ? count : int(threads_.size() + 31) / 32 * 32;
    b.sum = 0;
    b.name = name;
    b.where = where;
    b.first = &self();
    b.sync.renew();
  }
  b.sum += predicate != 0;
  add_arrival(b);
  b.sync.release();
  if (b.arrived < b.expected) {
    if (!wait) return 0;
    b.waiting.push_back(&self());
    suspend(name, where);
    return self().barrier_result;
  }
  for (unsigned warp = 0; warp * 32 < threads_.size(); ++warp)
    if (b.came[warp])
      fault(concat(name, " of ", b.expected, " threads: ", b.came[warp], " of warp ", warp,
                   " came, and not the others"),
            where);
  happened();
  const int result = b.sum;
  b.arrived = 0;
  if (wait) b.sync.acquire();
  for (Thread* thread : b.waiting) {
    thread->barrier_result = result;
    b.sync.acquire_as(thread->fiber->timeline);
    make_ready(*thread);
  }
  b.waiting.clear();
  // The last to come goes on first, unless the order is random.
  if (wait && random_order() && random() % 2) {
    make_ready(self());
    suspend(name, where);
  }
  return result;
}

void Block::in_step(size_t number, uint64_t what, const char* name, Where where) {
  const size_t group = self().warp() / 4;
  if ((group + 1) * 128 > threads_.size())
    fault(concat(name, " in a block of ", threads_.size(), " threads: a warpgroup has 128"), where);
  if (steps_.size() <= group) steps_.resize(group + 1);
  Steps& steps = steps_[group];
  if (number == steps.done.size()) steps.done.push_back(what);
  if (steps.done[number] != what)
    fault(concat(name, " where another warp of its warpgroup does something else"), where);
  steps.ended += what == kEnd;
}

void Block::check_steps() const {
  for (const Steps& steps : steps_)
    if (!steps.done.empty() && steps.ended < 4)
      throw Fault(concat("instructions of a warpgroup by ", steps.ended,
                         " of its four warps: kernel ", grid_->kernel, ", block (", index_.x, ",",
                         index_.y, ",", index_.z, ")"));
}

void Block::meet(unsigned mask, void* operands, Combine combine, const char* name, Where where) {
  Thread& thread = self();
  const unsigned bit = 1u << thread.lane();
  if (!(mask & bit)) fault(concat("bad lane mask: ", name, " by a lane that is not in it"), where);
  mask &= lanes_of(thread.warp());
  auto& meetings = meetings_[thread.warp()];
  Meeting* meeting = nullptr;
  for (Meeting& m : meetings) {
    if (!(m.mask & mask)) continue;
    if (m.mask != mask || !same_place(m.where, where) || m.name != name)
      fault(concat("bad lane mask: lanes wait for ", m.name, " at ", line_of(m.where),
                   " with mask 0x", std::hex, m.mask, ", this one comes to ", name, " with mask 0x",
                   mask),
            where);
    meeting = &m;
  }
  if (!meeting) {
    meeting = &meetings.emplace_back();
    meeting->mask = mask;
    meeting->combine = combine;
    meeting->name = name;
    meeting->where = where;
  }
  meeting->lanes[thread.lane()] = operands ? operands : &thread;
  meeting->arrived |= bit;
  meeting->sync.release();
  if (meeting->arrived != mask) return suspend(name, where);

  happened();
  meeting->sync.acquire();
  if (meeting->combine) {
    const Watched scope;
    meeting->combine(meeting->lanes);
  }
  meeting->sync.release();
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1) || lane == thread.lane()) continue;
    Thread& other = threads_[thread.warp() * 32 + lane];
    meeting->sync.acquire_as(other.fiber->timeline);
    make_ready(other);
  }
  meetings.erase(meetings.begin() + (meeting - meetings.data()));
  if (random_order() && random() % 2) {
    make_ready(thread);
    suspend(name, where);
  }
}

void Block::cluster_barrier(Where where) {
  if (!cluster_) fault("cluster_sync in a launch without clusters", where);
  if (cluster_->synced++ == 0)
    cluster_->where = where;
  else if (!same_place(cluster_->where, where))
    fault(concat("divergent cluster_sync: other threads wait at ", line_of(cluster_->where)),
          where);
  cluster_->sync.release();
  cluster_waiting_.push_back(&self());
  suspend("cluster_sync", where);
}

void Block::leave_cluster_barrier() {
  const Unwatched scope;
  happened();
  for (Thread* thread : cluster_waiting_) {
    cluster_->sync.acquire_as(thread->fiber->timeline);
    make_ready(*thread);
  }
  cluster_waiting_.clear();
}

void* Block::shared(size_t bytes, size_t alignment, Where where) {
  if (bytes > grid_->shared_bytes)
    fault(concat("the kernel uses ", bytes, " bytes of shared memory, launched with ",
                 grid_->shared_bytes),
          where);
  if (alignment > 1024) fault("shared memory is aligned to 1024 bytes at most", where);
  return shared_;
}

bool Block::is_shared(const void* pointer, size_t bytes) const {
  const auto first = reinterpret_cast<uintptr_t>(shared_);
  const auto at = reinterpret_cast<uintptr_t>(pointer);
  return at >= first && at + bytes <= first + grid_->shared_bytes;
}

void Block::note_copied(const void* pointer, size_t bytes) {
  if (copied_.empty()) copied_.resize(grid_->shared_bytes / 16 + 1);
  const size_t first = size_t(static_cast<const std::byte*>(pointer) - shared_);
  for (size_t i = first / 16; i <= (first + bytes - 1) / 16; ++i)
    copied_[i] = {self().linear + 1, self().proxy_fences};
}

const Thread* Block::unfenced_copy(const void* pointer) const {
  const size_t i = size_t(static_cast<const std::byte*>(pointer) - shared_) / 16;
  if (i >= copied_.size() || copied_[i].thread == 0) return nullptr;
  const Thread& thread = threads_[copied_[i].thread - 1];
  return thread.proxy_fences == copied_[i].fences ? &thread : nullptr;
}

uint32_t Block::random() { return uint32_t(next_random(random_state_) >> 32); }

void require(int capability, const char* instruction, Where where) {
  if (current_grid().options.profile.capability < capability)
    fault(concat(instruction, " needs sm_", capability, ", this is sm_",
                 current_grid().options.profile.capability),
          where);
}

const Grid& current_grid() { return self().block->grid(); }
uint3 current_block_idx() { return self().block->index(); }

// What kernels call, seen from the host model: its own memory is none of the sanitizer's business.
uint32_t random_choice() {
  const Unwatched scope;
  return self().block->random();
}
void yield_thread(const char* waits_for, Where where) {
  const Unwatched scope;
  self().block->poll(waits_for, where);
}
void note_progress() { self().block->happened(); }
void preemption_point(Where where) {
  const Unwatched scope;
  self().block->preempt(where);
}
int block_barrier(int id, int count, int predicate, const char* name, Where where) {
  const Unwatched scope;
  return self().block->barrier(id, count, predicate, true, name, where);
}
void block_arrive(int id, int count, const char* name, Where where) {
  const Unwatched scope;
  self().block->barrier(id, count, 0, false, name, where);
}
void cluster_sync(Where where) {
  const Unwatched scope;
  self().block->cluster_barrier(where);
}
void warp_rendezvous(unsigned mask, void* operands, Combine combine, const char* name,
                     Where where) {
  const Unwatched scope;
  self().block->meet(mask, operands, combine, name, where);
}
void in_step(size_t number, uint64_t what, const char* name, Where where) {
  const Unwatched scope;
  self().block->in_step(number, what, name, where);
}
void* shared_bytes(size_t bytes, size_t alignment, Where where) {
  const Unwatched scope;
  return self().block->shared(bytes, alignment, where);
}

bool is_shared(const void* pointer, size_t bytes) {
  const Unwatched scope;
  return self().block->is_shared(pointer, bytes);
}

void note_copied(const void* pointer, size_t bytes) {
  const Unwatched scope;
  self().block->note_copied(pointer, bytes);
}
void note_begun() {
  const Unwatched scope;  // the next block's thread has the same place
  self().begun = true;
}
void fence_copies() {
  const Unwatched scope;
  ++self().proxy_fences;
}
const Thread* unfenced_copy(const void* pointer) {
  const Unwatched scope;
  return self().block->unfenced_copy(pointer);
}

#ifdef TESSERA_TSAN
void order_release(const void* place) { __tsan_release(const_cast<void*>(place)); }
void order_acquire(const void* place) { __tsan_acquire(const_cast<void*>(place)); }
#else
void order_release(const void*) {}
void order_acquire(const void*) {}
#endif

}  // namespace tessera::simt
