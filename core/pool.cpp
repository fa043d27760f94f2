#include "core/pool.h"

#include <algorithm>
#include <bit>

#include "core/check.h"
#include "core/simt/sanitizer.h"

namespace tessera {
namespace {

constexpr size_t kAlignment = 64;

// Classes are 1/8 of a power of two apart, 2 MiB at most. A request is served by its own class
// only: then the second run of the same sequence of requests finds every block that the first one
// left.
size_t size_class(size_t bytes) {
  ENSURE(bytes <= SIZE_MAX / 2, "request of ", bytes, " bytes");
  const size_t step =
      std::clamp(std::bit_floor(std::max<size_t>(bytes, 1)) / 8, kAlignment, size_t{2} << 20);
  return std::max(kAlignment, (bytes + step - 1) / step * step);
}

}  // namespace

Pool::~Pool() { trim(); }

std::shared_ptr<Buffer> Pool::allocate(size_t bytes, Order order) {
  const size_t size = size_class(bytes);
  Block block{};
  {
    std::lock_guard lock(mutex_);
    ENSURE(open_.contains(order), "order ", order, " is closed");
    block = take(size, order);
    if (block.data == nullptr) block = take_from_system(size, bytes);
    count(size);
  }
  if (bytes > block.exposed) simt::unpoison_memory(block.data, block.exposed = bytes);
  return {new Buffer(block.data, size), [pool = shared_from_this(), block, order](Buffer* buffer) {
            pool->release(block, buffer->bytes(), order);
            delete buffer;
          }};
}

std::shared_ptr<Buffer> Pool::allocate_once(size_t bytes) {
  const size_t size = std::max(bytes, kAlignment);
  Block block{};
  {
    std::lock_guard lock(mutex_);
    block = take_from_system(size, size);
    count(size);
  }
  return {new Buffer(block.data, size), [pool = shared_from_this(), block](Buffer* buffer) {
            std::lock_guard lock(pool->mutex_);
            pool->in_use_ -= buffer->bytes();
            pool->give_back(block, buffer->bytes());
            delete buffer;
          }};
}

void Pool::count(size_t size) {
  in_use_ += size;
  peak_ = std::max(peak_, in_use_);
}

// A cached block: of the same order, or of none.
Pool::Block Pool::take(size_t size, Order order) {
  for (const Order from : {order, Order{0}}) {
    const auto found = free_.find({from, size});
    if (found == free_.end() || found->second.empty()) continue;
    const Block block = found->second.back();
    found->second.pop_back();
    return block;
  }
  return {};
}

// If need be after giving back what is cached. `bytes` of it are exposed.
Pool::Block Pool::take_from_system(size_t size, size_t bytes) {
  void* data = runtime_->allocate(size);
  if (data == nullptr && !free_.empty()) {
    release_cached();
    data = runtime_->allocate(size);
  }
  if (data == nullptr) {
    const size_t free = runtime_->free_bytes();
    throw OutOfMemory(concat("out of memory: requested ", bytes, " bytes, in use ", in_use_,
                             " bytes", free == SIZE_MAX ? "" : concat(", free ", free, " bytes")));
  }
  ++misses_;
  simt::poison_memory(static_cast<std::byte*>(data) + bytes, size - bytes);
  return {data, bytes};
}

void Pool::release(const Block& block, size_t bytes, Order order) {
  std::lock_guard lock(mutex_);
  in_use_ -= bytes;
  if (open_.contains(order)) {
    free_[{order, bytes}].push_back(block);
  } else {  // another order may use it still: the system waits for that
    give_back(block, bytes);
  }
}

void Pool::give_back(const Block& block, size_t bytes) {
  simt::unpoison_memory(block.data, bytes);
  runtime_->release(block.data);
}

Order Pool::open_order() {
  std::lock_guard lock(mutex_);
  open_.insert(++last_order_);
  return last_order_;
}

void Pool::close_order(Order order) {
  std::lock_guard lock(mutex_);
  open_.erase(order);
  for (auto it = free_.lower_bound({order, 0}); it != free_.end() && it->first.first == order;) {
    auto& idle = free_[{0, it->first.second}];
    idle.insert(idle.end(), it->second.begin(), it->second.end());
    it = free_.erase(it);
  }
}

size_t Pool::bytes_in_use() const {
  std::lock_guard lock(mutex_);
  return in_use_;
}

size_t Pool::peak_bytes() const {
  std::lock_guard lock(mutex_);
  return peak_;
}

int64_t Pool::misses() const {
  std::lock_guard lock(mutex_);
  return misses_;
}

void Pool::trim() {
  std::lock_guard lock(mutex_);
  release_cached();
}

void Pool::release_cached() {
  for (const auto& [key, blocks] : free_)
    for (const Block& block : blocks) give_back(block, key.second);
  free_.clear();
}

}  // namespace tessera
