// The Runtime of CUDA devices, compiled against CUDA and against its host model.
#include "core/runtime.h"

#include <algorithm>

#include "core/cuda/cuda.h"
#ifdef TESSERA_GPU
#include "core/cuda/probe.h"
#endif

namespace tessera::TESSERA_CUDA {
namespace {

cudaStream_t stream_of(void* native) { return static_cast<cudaStream_t>(native); }

// Throws InputError when there is no device to run on.
void find_device() {
  // Without a driver and with one that is too old, cudaGetDeviceCount says the same.
  int driver = 0, runtime = 0, count = 0;
  CUDA_CHECK(cudaDriverGetVersion(&driver));
  CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  const auto version = [](int number) { return concat(number / 1000, '.', number % 1000 / 10); };
  if (driver == 0)
    throw InputError("device cuda: this machine has no NVIDIA driver (use --device cpu)");
  if (driver / 1000 < runtime / 1000)
    throw InputError(concat("device cuda: the NVIDIA driver is too old: it supports CUDA ",
                            version(driver), ", this program was built with ", version(runtime),
                            " (update it, or use --device cpu)"));
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0))
    throw InputError("device cuda: the NVIDIA driver finds no GPU (use --device cpu)");
  if (error != cudaSuccess)
    throw InputError(concat("device cuda: the NVIDIA driver does not work: ",
                            cudaGetErrorString(error), " (use --device cpu)"));
}

void use_device() {
  const cudaError_t error = cudaSetDevice(0);  // takes some memory
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it would be reported once more by a later call
    throw OutOfMemory("device cuda: others have filled the GPU's memory (use --device cpu)");
  }
  CUDA_CHECK(error);
}

class CudaRuntime : public Runtime {
 public:
  CudaRuntime() {
    find_device();
    use_device();
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
    info_ = {properties.name, 10 * properties.major + properties.minor,
             properties.multiProcessorCount, properties.sharedMemPerBlockOptin,
             size_t(properties.l2CacheSize)};
#ifdef TESSERA_GPU
    // Kernels have what the code has that runs.
    info_.capability = std::min(info_.capability, code_for_this_gpu());
    if (info_.capability == 0)
      throw InputError(concat("device cuda: this program has no code for ", info_.name,
                              " (compute capability ", properties.major, '.', properties.minor,
                              "): it was built for ", TESSERA_ARCHITECTURES,
                              " (see -DTESSERA_CUDA_ARCHITECTURES in README.md)"));
#endif
  }

  const DeviceInfo& info() const override { return info_; }

  void* allocate(size_t bytes) override {
    void* memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, bytes);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // it would be reported once more by a later call
      return nullptr;
    }
    ENSURE(error != cudaErrorStreamCaptureUnsupported, "work that is recorded asks for ", bytes,
           " bytes more than the first time");
    CUDA_CHECK(error);
    return memory;
  }
  void release(void* memory) noexcept override { cudaFree(memory); }
  size_t free_bytes() override {
    size_t free = 0, total = 0;
    CUDA_CHECK(cudaMemGetInfo(&free, &total));
    return free;
  }

  void* allocate_pinned(size_t bytes) override {
    void* memory = nullptr;
    const cudaError_t error = cudaMallocHost(&memory, bytes);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return nullptr;
    }
    CUDA_CHECK(error);
    return memory;
  }
  void release_pinned(void* memory) noexcept override { cudaFreeHost(memory); }

  std::shared_ptr<void> make_stream() override {
    cudaStream_t stream;
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return {stream, [](void* native) { cudaStreamDestroy(stream_of(native)); }};
  }
  void wait_for(void* stream, void* other) override {
    cudaEvent_t event;
    CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    const auto destroy = [](cudaEvent_t made) { cudaEventDestroy(made); };  // when it has happened
    const std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, decltype(destroy)> owner(event,
                                                                                       destroy);
    CUDA_CHECK(cudaEventRecord(event, stream_of(other)));
    CUDA_CHECK(cudaStreamWaitEvent(stream_of(stream), event, 0));
  }
  void finish(void* stream) noexcept override {
#ifdef TESSERA_GPU
    cudaStreamSynchronize(stream_of(stream));
#else  // there, waiting throws what went wrong
    finish_quietly(stream_of(stream));
#endif
  }

  // CUDA does not promise to have read memory that is not pinned when the call returns.
  void copy_in(void* stream, void* to, const void* host, size_t bytes) override {
    copy_in_async(stream, to, host, bytes);
    synchronize(stream);
  }
  void copy_in_async(void* stream, void* to, const void* host, size_t bytes) override {
    CUDA_CHECK(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, stream_of(stream)));
  }
  void copy_out(void* stream, void* host, const void* from, size_t bytes) override {
    CUDA_CHECK(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, stream_of(stream)));
    synchronize(stream);
  }
  void copy(void* stream, void* to, const void* from, size_t bytes) override {
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_of(stream)));
  }
  void zero(void* stream, void* memory, size_t bytes) override {
    CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, stream_of(stream)));
  }
  void poison(void* stream, void* memory, size_t bytes) override {
#ifdef TESSERA_GPU
    CUDA_CHECK(cudaMemsetAsync(memory, 0xFF, bytes, stream_of(stream)));
#else
    fill_undefined_async(memory, bytes, stream_of(stream));
#endif
  }
  void synchronize(void* stream) override { CUDA_CHECK(cudaStreamSynchronize(stream_of(stream))); }

  bool can_record() const override { return true; }
  void begin_recording(void* stream) override {
    // Other threads may allocate meanwhile, and wait for streams of their own.
    CUDA_CHECK(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal));
  }
  std::shared_ptr<void> end_recording(void* stream, bool drop) override {
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream_of(stream), &graph);
    if (drop || ended != cudaSuccess) {
      cudaGetLastError();  // it would be reported once more by a later call
      if (graph) cudaGraphDestroy(graph);
    }
    if (drop) return nullptr;
    CUDA_CHECK(ended);
    cudaGraphExec_t executable = nullptr;
    const cudaError_t made = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    CUDA_CHECK(made);
    return {executable,
            [](void* recording) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(recording)); }};
  }
  void replay(void* stream, void* recording) override {
    CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(recording), stream_of(stream)));
  }

 private:
  DeviceInfo info_;
};

}  // namespace

std::shared_ptr<Runtime> make_runtime() { return std::make_shared<CudaRuntime>(); }

}  // namespace tessera::TESSERA_CUDA
