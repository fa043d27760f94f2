#include "tests/cuda_baselines.h"

#include <dlfcn.h>

#include <algorithm>

#include "core/rng.h"
#include "tests/op_runner.h"

namespace tessera {

SharedLibrary::SharedLibrary(const std::string& name)
    : handle_(dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) {
#ifdef TESSERA_CUDA_LIBRARY_DIR
  if (!handle_)
    handle_ = dlopen(concat(TESSERA_CUDA_LIBRARY_DIR, '/', name).c_str(), RTLD_NOW | RTLD_LOCAL);
#endif
}

void* SharedLibrary::find_symbol(const char* symbol) const {
  void* address = dlsym(handle_, symbol);
  ENSURE(address, "a library lacks ", symbol);
  return address;
}

Tensor random_tensor(Stream& stream, const Shape& shape, DType dtype) {
  Tensor tensor = Tensor::empty(stream, shape, dtype);
  const int64_t part = std::min(shape.numel(), int64_t{1} << 16);
  if (part == 0) return tensor;
  const Tensor first = tensor_of(stream, normal("random_tensor", {part}), dtype);
  Runtime& runtime = stream.device().runtime();
  runtime.copy(stream.native(), tensor.raw(), first.raw(), first.bytes());
  // What is there is copied behind itself.
  for (size_t done = first.bytes(); done < tensor.bytes(); done *= 2)
    runtime.copy(stream.native(), tensor.raw() + done, tensor.raw(),
                 std::min(done, tensor.bytes() - done));
  return tensor;
}

#ifndef TESSERA_HAS_CUDNN
std::unique_ptr<CudnnLibrary> open_cudnn(Stream&, Timer&) { return nullptr; }
#endif
#ifndef TESSERA_HAS_CUBLAS
std::unique_ptr<CublasLibrary> open_cublas(Stream&) { return nullptr; }
#endif

}  // namespace tessera
