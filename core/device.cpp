#include "core/device.h"

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/check.h"

namespace tessera {

static std::shared_ptr<Runtime> make_runtime(DeviceType type);

bool is_built(DeviceType type) {
#ifdef TESSERA_HAS_CUDA
  constexpr bool has_cuda = true;
#else
  constexpr bool has_cuda = false;
#endif
  return has_cuda || type != DeviceType::cuda;
}

bool is_there(DeviceType type) {
  if (!is_built(type)) return false;
  try {
    make_runtime(type);
    return true;
  } catch (const OutOfMemory&) {
    return true;
  } catch (const InputError&) {
    return false;
  }
}

bool has_gpu() { return is_there(DeviceType::cuda); }

namespace {

class CpuRuntime : public Runtime {
 public:
  const DeviceInfo& info() const override { return info_; }
  void* allocate(size_t bytes) override { return std::aligned_alloc(64, (bytes + 63) / 64 * 64); }
  void release(void* memory) noexcept override { std::free(memory); }
  size_t free_bytes() override { return SIZE_MAX; }
  void* allocate_pinned(size_t bytes) override { return allocate(bytes); }
  void release_pinned(void* memory) noexcept override { release(memory); }
  std::shared_ptr<void> make_stream() override { return nullptr; }
  void copy_in(void*, void* to, const void* host, size_t bytes) override {
    std::memcpy(to, host, bytes);
  }
  void copy_in_async(void* stream, void* to, const void* pinned, size_t bytes) override {
    copy_in(stream, to, pinned, bytes);
  }
  void copy_out(void*, void* host, const void* from, size_t bytes) override {
    std::memcpy(host, from, bytes);
  }
  void copy(void*, void* to, const void* from, size_t bytes) override {
    std::memcpy(to, from, bytes);
  }
  void zero(void*, void* memory, size_t bytes) override { std::memset(memory, 0, bytes); }
  void poison(void*, void* memory, size_t bytes) override { std::memset(memory, 0xFF, bytes); }
  void synchronize(void*) override {}

 private:
  DeviceInfo info_{"CPU"};
};

}  // namespace

std::shared_ptr<Runtime> make_cpu_runtime() { return std::make_shared<CpuRuntime>(); }

static std::shared_ptr<Runtime> make_runtime(DeviceType type) {
#ifdef TESSERA_HAS_CUDA
  if (type == DeviceType::cuda) return gpu::make_runtime();
#endif
  return type == DeviceType::simt ? simt::make_runtime() : make_cpu_runtime();
}

std::shared_ptr<Device> Device::open(DeviceType type, int threads) {
  if (!is_built(type))
    throw InputError(concat("device ", name_of(type),
                            " is not in this build, which was made without a CUDA toolkit (use "
                            "--device cpu)"));
  ENSURE(threads >= 0, "threads is ", threads);
  const int most = omp_get_thread_limit();
  return std::shared_ptr<Device>(new Device(
      type, std::min(threads > 0 ? threads : omp_get_num_procs(), most), make_runtime(type)));
}

Device::Device(DeviceType type, int threads, std::shared_ptr<Runtime> runtime)
    : type_(type),
      threads_(threads),
      runtime_(std::move(runtime)),
      pool_(std::make_shared<Pool>(runtime_)) {}

void Device::use_threads() const {
  // No fewer, of which oneDNN would not know when it plans.
  omp_set_dynamic(0);
  if (omp_get_max_active_levels() < 1) omp_set_max_active_levels(1);
  omp_set_num_threads(threads_);
}

Stream::~Stream() {
  device_->runtime().finish(native());
  states_.clear();
  native_.reset();
  if (order_ != 0) device_->pool()->close_order(order_);
}

}  // namespace tessera
