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
// True when a GPU is there that Device::open(DeviceType::cuda) would open.
bool has_gpu();

class Device {
 public:
  // threads: CPU threads that kernels use, 0 = as many as the machine has. Throws InputError when
  // this build or machine has no such device.
  static std::shared_ptr<Device> open(DeviceType type, int threads = 0);

  DeviceType type() const { return type_; }
  int threads() const { return threads_; }
  // Parallel regions that the calling thread opens from here on have threads() threads. OpenMP
  // keeps this number per thread, so every kernel sets it before it runs.
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
  // Of the device's pool: what memory is given to.
  Order order() const { return order_; }
  // Asks for memory in another order from here on; returns the one before. For work that is issued
  // again and again with the same memory (core/recording.h).
  Order exchange_order(Order order) { return std::exchange(order_, order); }
  // What products of f32 may do on devices with tensor cores: convolutions and Linear look at it.
  Math math = Math::f32;
  void synchronize() { device_->runtime().synchronize(native()); }

  // The stream's one T (a library handle, a primitive cache), made on first use. T is constructed
  // from the Stream.
  template <class T>
  T& state() {
    auto& slot = states_[std::type_index(typeid(T))];
    if (!slot) slot = std::make_shared<T>(*this);
    return *static_cast<T*>(slot.get());
  }

 private:
  std::shared_ptr<Device> device_;
  std::shared_ptr<void> native_;
  Order order_;
  std::unordered_map<std::type_index, std::shared_ptr<void>> states_;
};

}  // namespace tessera
