// Caching memory pool. Freed blocks are kept by size class and handed out again, so that a training
// step, which asks for the same sizes in the same order every time, takes nothing from the system
// after the first one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "core/runtime.h"

namespace tessera {

// Whose turn it is to use a block: the number of an order of execution (a Stream), or 0 where work
// has finished when a call returns.
using Order = uint64_t;

// Device memory, aligned to 64 bytes. Given back when the last shared_ptr to it goes.
class Buffer {
 public:
  Buffer(void* data, size_t bytes) : data_(static_cast<std::byte*>(data)), bytes_(bytes) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* data_;
  size_t bytes_;
};

// What a stream may ask for memory in place of the pool.
class MemorySource {
 public:
  virtual ~MemorySource() = default;
  // At least `bytes`, uninitialised. Throws OutOfMemory.
  virtual std::shared_ptr<Buffer> allocate(size_t bytes) = 0;
};

class Pool : public std::enable_shared_from_this<Pool> {
 public:
  explicit Pool(std::shared_ptr<Runtime> runtime = make_cpu_runtime())
      : runtime_(std::move(runtime)) {}
  ~Pool();

  // At least `bytes`, uninitialised, for work in `order`. A freed block goes to later work of the
  // same order, which comes after whatever still uses it: who uses a block in another order, too,
  // keeps it until that has been waited for. Or its order has ended. What is cached is given back
  // before a request fails; then throws OutOfMemory with requested, used and free bytes.
  std::shared_ptr<Buffer> allocate(size_t bytes, Order order = 0);
  // A block of its own: just `bytes`, taken from the system, and given back to it, which waits.
  std::shared_ptr<Buffer> allocate_once(size_t bytes);

  // A new order, and its end: all its work is done, and its cached blocks serve anybody.
  Order open_order();
  void close_order(Order order);

  size_t bytes_in_use() const;
  size_t peak_bytes() const;  // highest bytes_in_use() so far
  int64_t misses() const;     // blocks taken from the system so far
  // Gives cached blocks back to the system, which waits for work that may still use them.
  void trim();
  // Whether new tensors are filled with NaNs: tests find values that a kernel did not write.
  void set_poison(bool on) { poison_ = on; }
  bool poison() const { return poison_; }

 private:
  // What lies behind the largest request that a block has served is poisoned for AddressSanitizer:
  // of the last one it cannot be, as queued work may still use the block for an earlier one.
  struct Block {
    void* data;
    size_t exposed;  // bytes that AddressSanitizer takes for valid
  };
  void release(const Block& block, size_t bytes, Order order);
  // With the lock held.
  Block take(size_t size, Order order);
  Block take_from_system(size_t size, size_t bytes);
  void count(size_t size);
  void release_cached();
  void give_back(const Block& block, size_t bytes);

  std::shared_ptr<Runtime> runtime_;
  mutable std::mutex mutex_;
  std::map<std::pair<Order, size_t>, std::vector<Block>> free_;  // by order and size class
  std::set<Order> open_{0};
  Order last_order_ = 0;
  size_t in_use_ = 0;
  size_t peak_ = 0;
  int64_t misses_ = 0;
  bool poison_ = false;
};

}  // namespace tessera
