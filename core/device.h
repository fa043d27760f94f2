// Where tensors live and kernels run. A Device owns the memory; a Stream is an order of execution
// on it and owns the handles of the libraries used there. Neither is global: whoever computes
// passes a Stream.
#pragma once

#include <memory>
#include <string>
#include <typeindex>
#include <unordered_map>

#include "core/pool.h"

namespace tessera {

// cpu: fast host path. cuda: a GPU. simt: the CUDA kernels executed on the host.
enum class DeviceType { cpu, cuda, simt };

const char* name_of(DeviceType type);
// "cpu", "cuda", "simt"; throws UsageError for anything else.
DeviceType device_type_of(const std::string& name);
// True when this build has kernels for `type`.
bool is_built(DeviceType type);

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

 private:
  Device(DeviceType type, int threads);

  DeviceType type_;
  int threads_;
  std::shared_ptr<Pool> pool_;
};

// Used by one thread at a time. On the CPU every call has finished when it returns.
class Stream {
 public:
  explicit Stream(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Device& device() const { return *device_; }

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
  std::unordered_map<std::type_index, std::shared_ptr<void>> states_;
};

}  // namespace tessera
