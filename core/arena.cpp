#include "core/arena.h"

#include <limits>

#include "core/check.h"
#include "core/simt/sanitizer.h"

namespace tessera {

constexpr int64_t kStays = std::numeric_limits<int64_t>::max();

std::shared_ptr<Buffer> RequestLog::allocate(size_t bytes) {
  auto buffer = pool_->allocate(bytes, order_);
  const size_t i = notes_->lives.size();
  notes_->lives.push_back({bytes, notes_->now++, kStays});
  Buffer* const address = buffer.get();
  return {address, [buffer = std::move(buffer), notes = notes_, i](Buffer*) mutable {
            notes->lives[i].death = notes->now++;
            buffer.reset();
          }};
}

std::vector<Life> RequestLog::lives() const {
  std::vector<Life> lives = notes_->lives;
  for (Life& life : lives)
    if (life.death == kStays) life.birth = 0;
  return lives;
}

Arena::Arena(const std::shared_ptr<Pool>& pool, const std::vector<Life>& lives)
    : lives_(lives), plan_(plan_memory(lives_)), block_(pool->allocate_once(plan_.bytes)) {
  simt::poison_memory(block_->data(), block_->bytes());
  for (size_t i = 0; i < lives_.size(); ++i)
    simt::unpoison_memory(block_->data() + plan_.offsets[i], lives_[i].bytes);
}

std::shared_ptr<Buffer> Arena::allocate(size_t bytes) {
  const size_t i = next_;
  ENSURE(i < lives_.size(), "recorded work asks for ", bytes, " bytes more than the first time");
  ENSURE(bytes == lives_[i].bytes, "recorded work asks for ", bytes, " bytes in request ", i + 1,
         ", the first time for ", lives_[i].bytes);
  const size_t begin = plan_.offsets[i], end = begin + bytes;
  for (const size_t other : *in_use_)
    ENSURE(plan_.offsets[other] >= end || plan_.offsets[other] + lives_[other].bytes <= begin,
           "recorded work still uses request ", other + 1, " at request ", i + 1,
           ", the first time it did not");
  ++next_;
  in_use_->insert(i);
  return {new Buffer(block_->data() + begin, bytes),
          [block = block_, in_use = in_use_, i](Buffer* buffer) {
            in_use->erase(i);
            delete buffer;
          }};
}

void Arena::check_finished() const {
  ENSURE(next_ == lives_.size(), "recorded work makes ", next_, " requests for memory, ",
         lives_.size(), " the first time");
  for (const size_t i : *in_use_)
    ENSURE(lives_[i].death == kStays, "recorded work keeps request ", i + 1,
           ", the first time it did not");
}

}  // namespace tessera
