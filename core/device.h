// Where tensors live and kernels run. A Device owns the memory; a Stream is an order of execution
// on it and owns the handles of the libraries used there. Neither is global: whoever computes
// passes a Stream.
#pragma once

#include <memory>
#include <string>
#include <typeindex>
#include <unordered_map>
#include <utility>

#include "core/pool.h"
#include "core/precision.h"

namespace tessera {

// cpu: fast host path. cuda: a GPU. simt: the CUDA kernels executed on the host.
enum class DeviceType { cpu, cuda, simt };

const char* name_of(DeviceType type);
// "cpu", "cuda", "simt"; throws UsageError for anything else.
DeviceType device_type_of(const std::string& name);
// True when this build has kernels for `type`.
bool is_built(DeviceType type);
// True when Device::open(type) finds a device, even one that is of no use now because others have
// filled its memory: open() then throws OutOfMemory.
bool is_there(DeviceType type);
// is_there(DeviceType::cuda)
bool has_gpu();

class Device {
 public:
  // threads: CPU threads that kernels use, 0 = as many as the machine has; no more than OpenMP may
  // start (OMP_THREAD_LIMIT). Throws InputError when this build or machine has no such device.
  static std::shared_ptr<Device> open(DeviceType type, int threads = 0);

  DeviceType type() const { return type_; }
  int threads() const { return threads_; }
  // Parallel regions that the calling thread opens from here on have threads() threads, whatever
  // OMP_DYNAMIC and OMP_MAX_ACTIVE_LEVELS say. OpenMP keeps this per thread, so every kernel sets
  // it before it runs.
  void use_threads() const;
  const std::shared_ptr<Pool>& pool() const { return pool_; }
  Runtime& runtime() const { return *runtime_; }
  const DeviceInfo& info() const { return runtime_->info(); }

 private:
  Device(DeviceType type, int threads, std::shared_ptr<Runtime> runtime);

  DeviceType type_;
  int threads_;
  std::shared_ptr<Runtime> runtime_;
  std::shared_ptr<Pool> pool_;
};

// Used by one thread at a time. On the CPU every call has finished when it returns; elsewhere
// tensors that go out of scope may still be in use, which is safe: what gets their memory next
// comes later in the same order. The end of a stream waits for its work.
class Stream {
 public:
  explicit Stream(std::shared_ptr<Device> device)
      : device_(std::move(device)),
        native_(device_->runtime().make_stream()),
        order_(native_ ? device_->pool()->open_order() : 0) {}
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Device& device() const { return *device_; }
  const std::shared_ptr<Device>& device_ptr() const { return device_; }
  // The cudaStream_t; nullptr on the CPU.
  void* native() const { return native_.get(); }
  // Expires when the stream's work is done and the stream ends; of a CPU's stream it has.
  std::weak_ptr<void> native_ptr() const { return native_; }
  // Memory for a tensor: from the device's pool, in the order of this stream.
  std::shared_ptr<Buffer> allocate(size_t bytes) {
    return source_ ? source_->allocate(bytes) : device_->pool()->allocate(bytes, order_);
  }
  // Of the device's pool: what memory is given to.
  Order order() const { return order_; }
  // While it lives, the stream asks `source` for memory; nullptr: the pool. For work that is issued
  // again and again (core/recording.h).
  class MemoryFrom {
   public:
    MemoryFrom(Stream& stream, MemorySource* source)
        : stream_(stream), outer_(std::exchange(stream.source_, source)) {}
    ~MemoryFrom() { stream_.source_ = outer_; }
    MemoryFrom(const MemoryFrom&) = delete;
    MemoryFrom& operator=(const MemoryFrom&) = delete;

   private:
    Stream& stream_;
    MemorySource* outer_;
  };

  // What products of f32 may do on devices with tensor cores: convolutions and Linear look at it.
  Math math = Math::f32;
  void synchronize() { device_->runtime().synchronize(native()); }

  // The stream's one T (a library handle, a primitive cache), made on first use. T is constructed
  // from the Stream.
  template <class T>
  T& state() {
    auto& slot = states_[std::type_index(typeid(T))];
    if (!slot) {
      const MemoryFrom pool(*this, nullptr);  // it is not part of the work that needed it first
      slot = std::make_shared<T>(*this);
    }
    return *static_cast<T*>(slot.get());
  }
  // The same if it was used before, else nullptr.
  template <class T>
  T* find_state() {
    const auto slot = states_.find(std::type_index(typeid(T)));
    return slot == states_.end() ? nullptr : static_cast<T*>(slot->second.get());
  }

 private:
  std::shared_ptr<Device> device_;
  std::shared_ptr<void> native_;
  Order order_;
  MemorySource* source_ = nullptr;
  std::unordered_map<std::type_index, std::shared_ptr<void>> states_;
};

}  // namespace tessera
