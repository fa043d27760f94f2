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

namespace tessera {

class Pool;

// A block of a pool, given back when destroyed. Aligned to 64 bytes.
class Buffer {
 public:
  Buffer(std::shared_ptr<Pool> pool, void* data, size_t bytes)
      : pool_(std::move(pool)), data_(data), bytes_(bytes) {}
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<Pool> pool_;
  void* data_;
  size_t bytes_;  // of the size class
};

class Pool : public std::enable_shared_from_this<Pool> {
 public:
  ~Pool();

  // At least `bytes`, uninitialised. Throws InputError with requested and used bytes when the
  // system has no more.
  std::shared_ptr<Buffer> allocate(size_t bytes);

  size_t bytes_in_use() const;
  size_t peak_bytes() const;  // highest bytes_in_use() so far
  int64_t misses() const;     // blocks taken from the system so far
  // Gives cached blocks back to the system.
  void trim();
  // Fill every block handed out with 0xFF bytes (NaN as f32 and f64): tests find values that a
  // kernel did not write.
  void set_poison(bool on) { poison_ = on; }

 private:
  friend class Buffer;
  void release(void* data, size_t bytes);

  mutable std::mutex mutex_;
  std::unordered_map<size_t, std::vector<void*>> free_;
  size_t in_use_ = 0;
  size_t peak_ = 0;
  int64_t misses_ = 0;
  bool poison_ = false;
};

}  // namespace tessera
