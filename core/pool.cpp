#include "core/pool.h"

#include <algorithm>
#include <bit>
#include <string>

#include "core/check.h"
#include "core/simt/sanitizer.h"

namespace tessera {
namespace {

constexpr size_t kAlignment = 64;

// Classes are 1/8 of a power of two apart. A request is served by its own class only: then the
// second run of the same sequence of requests finds every block that the first one left.
size_t size_class(size_t bytes) {
  ENSURE(bytes <= SIZE_MAX / 2, "request of ", bytes, " bytes");
  const size_t step = std::max(kAlignment, std::bit_floor(std::max<size_t>(bytes, 1)) / 8);
  return std::max(kAlignment, (bytes + step - 1) / step * step);
}

}  // namespace

Buffer::~Buffer() { pool_->release({data_, exposed_}, bytes_, order_); }

Pool::~Pool() { trim(); }

std::shared_ptr<Buffer> Pool::allocate(size_t bytes, Order order) {
  const size_t size = size_class(bytes);
  Block block{};
  {
    std::lock_guard lock(mutex_);
    ENSURE(open_.contains(order), "order ", order, " is closed");
    block = take(size, order);
    if (block.data == nullptr) {
      block.data = take_from_system(size);
      if (block.data == nullptr) {
        const size_t free = runtime_->free_bytes();
        throw OutOfMemory(concat("out of memory: requested ", bytes, " bytes, in use ", in_use_,
                                 " bytes",
                                 free == SIZE_MAX ? "" : concat(", free ", free, " bytes")));
      }
      ++misses_;
      block.exposed = bytes;
      simt::poison_memory(static_cast<std::byte*>(block.data) + bytes, size - bytes);
    }
    in_use_ += size;
    peak_ = std::max(peak_, in_use_);
  }
  if (bytes > block.exposed) simt::unpoison_memory(block.data, block.exposed = bytes);
  return std::make_shared<Buffer>(shared_from_this(), order, block.data, size, block.exposed);
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

// If need be after giving back what is cached.
void* Pool::take_from_system(size_t size) {
  void* data = runtime_->allocate(size);
  if (data != nullptr || free_.empty()) return data;
  release_cached();
  return runtime_->allocate(size);
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

Order Pool::open_order(bool held) {
  std::lock_guard lock(mutex_);
  open_.insert(++last_order_);
  if (held) held_.insert(last_order_);
  return last_order_;
}

void Pool::close_order(Order order, bool work_is_done) {
  std::lock_guard lock(mutex_);
  open_.erase(order);
  held_.erase(order);
  for (auto it = free_.lower_bound({order, 0}); it != free_.end() && it->first.first == order;) {
    if (work_is_done) {
      auto& idle = free_[{0, it->first.second}];
      idle.insert(idle.end(), it->second.begin(), it->second.end());
    } else {
      for (const Block& block : it->second) give_back(block, it->first.second);
    }
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
  std::erase_if(free_, [this](const auto& entry) {
    const auto& [key, blocks] = entry;
    if (held_.contains(key.first)) return false;
    for (const Block& block : blocks) give_back(block, key.second);
    return true;
  });
}

}  // namespace tessera
