// Running a kernel of a test on the host model.
#pragma once

#include <string>
#include <vector>

#include "core/cuda/cuda.h"

namespace tessera {

// A stream and memory of the host model.
class SimtRun {
 public:
  SimtRun() { CUDA_CHECK(simt::cudaStreamCreateWithFlags(&stream_, simt::cudaStreamNonBlocking)); }
  ~SimtRun() {
    simt::cudaStreamDestroy(stream_);
    for (void* one : memory_) simt::cudaFree(one);
  }
  SimtRun(const SimtRun&) = delete;
  SimtRun& operator=(const SimtRun&) = delete;

  // Memory that nothing was written to, and with a copy of `values`.
  template <class T>
  T* allocate(size_t count) {
    void* memory = nullptr;
    CUDA_CHECK(simt::cudaMalloc(&memory, count * sizeof(T)));
    memory_.push_back(memory);
    return static_cast<T*>(memory);
  }
  template <class T>
  T* allocate(const std::vector<T>& values) {
    T* const memory = allocate<T>(values.size());
    std::copy(values.begin(), values.end(), memory);
    return memory;
  }

  // One block. Throws what the kernel's threads throw.
  template <auto Kernel, class... Arguments>
  void run(int threads, size_t shared, const Arguments&... arguments) {
    simt::launch<Kernel>({stream_, simt::dim3(1), simt::dim3(unsigned(threads)), shared},
                         arguments...);
    CUDA_CHECK(simt::cudaStreamSynchronize(stream_));
  }
  // The message of the fault that one block ends with, "" when there is none.
  template <auto Kernel, class... Arguments>
  std::string fault_of(int threads, size_t shared, const Arguments&... arguments) {
    try {
      run<Kernel>(threads, shared, arguments...);
    } catch (const simt::Fault& fault) {
      return fault.what();
    }
    return "";
  }

 private:
  simt::cudaStream_t stream_ = nullptr;
  std::vector<void*> memory_;
};

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace tessera
