#include "core/pool.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>

#include "core/check.h"

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

Buffer::~Buffer() { pool_->release(data_, bytes_); }

Pool::~Pool() { trim(); }

std::shared_ptr<Buffer> Pool::allocate(size_t bytes) {
  const size_t size = size_class(bytes);
  void* data = nullptr;
  {
    std::lock_guard lock(mutex_);
    auto& blocks = free_[size];
    if (!blocks.empty()) {
      data = blocks.back();
      blocks.pop_back();
    } else {
      data = std::aligned_alloc(kAlignment, size);
      if (data == nullptr)
        throw InputError(concat("out of memory: requested ", bytes, " bytes, in use ", in_use_,
                                " bytes (a smaller batch or network may fit)"));
      ++misses_;
    }
    in_use_ += size;
    peak_ = std::max(peak_, in_use_);
  }
  if (poison_) std::memset(data, 0xFF, size);
  return std::make_shared<Buffer>(shared_from_this(), data, size);
}

void Pool::release(void* data, size_t bytes) {
  std::lock_guard lock(mutex_);
  free_[bytes].push_back(data);
  in_use_ -= bytes;
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
  for (auto& [size, blocks] : free_)
    for (void* data : blocks) std::free(data);
  free_.clear();
}

}  // namespace tessera
