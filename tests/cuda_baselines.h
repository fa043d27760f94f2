// What the kernels are compared with on a GPU: NVIDIA's cuDNN (convolutions) and cuBLAS (products
// of matrices). Both are looked for when the program runs; without them, or without their headers
// when it was built, there is nothing to compare with. Not compared: GroupNorm, which cuDNN's graph
// API names (CUDNN_GROUP_NORM of cudnn_graph.h; whether an engine computes it is not known here),
// and what this engine fuses with it.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "core/precision.h"
#include "kernels/kernels.h"
#include "tests/bench_timer.h"

namespace tessera {

// What is timed of an operation: one way, or the way back to its activations or to its weights.
enum class Direction { Forward, Backward, DataGradient, WeightGradient };

// Computes a thing once, in tensors of its own; empty when the library cannot.
using LibraryCall = std::function<void()>;

struct Arithmetic {
  DType storage = DType::f32;
  Math math = Math::f32;
};

class Library {
 public:
  virtual ~Library() = default;
  virtual std::string version() const = 0;  // "cuDNN 9.19.0"
};

class CudnnLibrary : public Library {
 public:
  // A convolution with NHWC tensors and KRSC filters, sums in float, by the fastest kernel that
  // cuDNN's heuristics propose or that a search of its engines finds; forward with the bias added
  // by the same kernel if there is one that does. The filter's gradient is stored in the storage
  // type.
  virtual LibraryCall conv2d(const ConvProblem& problem, bool bias, Direction direction,
                             const Arithmetic& arithmetic) = 0;
};

class CublasLibrary : public Library {
 public:
  // linear (kernels.h) or a gradient of it, without the bias.
  virtual LibraryCall linear(int64_t N, int64_t C, int64_t K, Direction direction,
                             const Arithmetic& arithmetic) = 0;
};

// nullptr when the library, its headers, or the GPU is not there.
std::unique_ptr<CudnnLibrary> open_cudnn(Stream& stream, Timer& timer);
std::unique_ptr<CublasLibrary> open_cublas(Stream& stream);

// A tensor of normal numbers, made in no time: a short random sequence, repeated.
Tensor random_tensor(Stream& stream, const Shape& shape, DType dtype);

// The symbols of a shared library that may not be there.
class SharedLibrary {
 public:
  // As the system finds it, else in the folder where it was when this program was built.
  explicit SharedLibrary(const std::string& name);
  explicit operator bool() const { return handle_ != nullptr; }
  // SharedLibrary::find<decltype(&f)>("f"); throws when it is missing.
  template <class Function>
  Function find(const char* symbol) const {
    return reinterpret_cast<Function>(find_symbol(symbol));
  }

 private:
  void* find_symbol(const char* symbol) const;
  void* handle_;  // never closed: NVIDIA's libraries do not like it
};

}  // namespace tessera
