// Caching memory pool. Freed blocks are kept by size class and handed out again, so that a training
// step, which asks for the same sizes in the same order every time, takes nothing from the system
// after the first one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "core/runtime.h"

namespace tessera {

class Pool;

// A block of a pool, given back when destroyed. Aligned to 64 bytes.
class Buffer {
 public:
  Buffer(std::shared_ptr<Pool> pool, void* data, size_t bytes, size_t exposed)
      : pool_(std::move(pool)), data_(data), bytes_(bytes), exposed_(exposed) {}
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<Pool> pool_;
  void* data_;
  size_t bytes_;    // of the size class
  size_t exposed_;  // of them, those that AddressSanitizer takes for valid
};

class Pool : public std::enable_shared_from_this<Pool> {
 public:
  explicit Pool(std::shared_ptr<Runtime> runtime = make_cpu_runtime())
      : runtime_(std::move(runtime)) {}
  ~Pool();

  // At least `bytes`, uninitialised. What is cached is given back before a request fails; then
  // throws OutOfMemory with requested, used and free bytes.
  std::shared_ptr<Buffer> allocate(size_t bytes);

  size_t bytes_in_use() const;
  size_t peak_bytes() const;  // highest bytes_in_use() so far
  int64_t misses() const;     // blocks taken from the system so far
  // Gives cached blocks back to the system.
  void trim();
  // Whether new tensors are filled with NaNs: tests find values that a kernel did not write.
  void set_poison(bool on) { poison_ = on; }
  bool poison() const { return poison_; }

 private:
  friend class Buffer;
  // What lies behind the largest request that a block has served is poisoned for AddressSanitizer:
  // of the last one it cannot be, as queued work may still use the block for an earlier one.
  struct Block {
    void* data;
    size_t exposed;
  };
  void release(const Block& block, size_t bytes);
  // With the lock held.
  void* take(size_t size);
  void release_cached();

  std::shared_ptr<Runtime> runtime_;
  mutable std::mutex mutex_;
  std::unordered_map<size_t, std::vector<Block>> free_;
  size_t in_use_ = 0;
  size_t peak_ = 0;
  int64_t misses_ = 0;
  bool poison_ = false;
};

}  // namespace tessera
