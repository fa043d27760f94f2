// How a function of the catalogue finds its implementation. Every backend is a namespace with
// functions of the catalogue's names and signatures, so one line dispatches:
//   DISPATCH(stream, x.dtype(), activation_fwd(stream, act, x, y));
// and one line, above it, says which of them kernels/cuda/*.cu define:
//   ON_CUDA(activation_fwd)
#pragma once

#include "kernels/kernels.h"

// cpu: fast loops, f32 and bf16. oracle: plain f64 loops. simt and gpu: the CUDA kernels, on the
// host model and on a GPU.
#define DISPATCH(stream, dtype, call)                 \
  switch (::tessera::select_backend(stream, dtype)) { \
    case ::tessera::Backend::cpu:                     \
      cpu::call;                                      \
      break;                                          \
    case ::tessera::Backend::oracle:                  \
      oracle::call;                                   \
      break;                                          \
    case ::tessera::Backend::simt:                    \
      simt::call;                                     \
      break;                                          \
      TESSERA_CASE_GPU(call)                          \
  }

// Declares a function of the catalogue in the CUDA backends.
#define ON_CUDA(function)               \
  namespace simt {                      \
  decltype(tessera::function) function; \
  }                                     \
  namespace gpu {                       \
  decltype(tessera::function) function; \
  }

#ifdef TESSERA_HAS_CUDA
#define TESSERA_CASE_GPU(call)  \
  case ::tessera::Backend::gpu: \
    gpu::call;                  \
    break;
#else
#define TESSERA_CASE_GPU(call)
#endif

namespace tessera {

enum class Backend {
  cpu,
  oracle,
  simt,
#ifdef TESSERA_HAS_CUDA
  gpu,
#endif
};

inline Backend select_backend(Stream& stream, DType dtype) {
  const DeviceType type = stream.device().type();
#ifdef TESSERA_HAS_CUDA
  if (type == DeviceType::cuda) return Backend::gpu;
#endif
  if (type == DeviceType::simt) return Backend::simt;
  stream.device().use_threads();
  if (dtype == DType::f32 || dtype == DType::bf16) return Backend::cpu;
  ENSURE(dtype == DType::f64, "no CPU kernels for ", name_of(dtype));
  return Backend::oracle;
}

// Calls f.operator()<act>() for an activation known at run time.
template <class F>
decltype(auto) with_activation(Activation act, F&& f) {
  switch (act) {
    case Activation::Gelu:
      return f.template operator()<Activation::Gelu>();
    case Activation::GeluTanh:
      return f.template operator()<Activation::GeluTanh>();
    case Activation::Relu:
      break;
  }
  return f.template operator()<Activation::Relu>();
}

// Throws unless `tensor` has this shape and dtype. `what` names it: "conv2d_fwd: y".
inline void expect(const char* what, const Tensor& tensor, const Shape& shape, DType dtype) {
  ENSURE(tensor.defined(), what, " is undefined");
  ENSURE(tensor.shape() == shape && tensor.dtype() == dtype, what, " is ", tensor.shape(), ' ',
         name_of(tensor.dtype()), ", expected ", shape, ' ', name_of(dtype));
}
// The same for what may be left out.
inline void expect_if(const char* what, const Tensor& tensor, const Shape& shape, DType dtype) {
  if (tensor.defined()) expect(what, tensor, shape, dtype);
}

// Throws unless there is room for the moments of y, and starts them as not made.
inline void expect_moments(MomentsOut& out, const Tensor& y) {
  const int G = out.spec.groups;
  ENSURE(G > 0 && y.dim(3) % G == 0, "moments: ", y.dim(3), " channels in ", G, " groups");
  expect("moments", out.moments, {y.dim(0), G, 2}, master_of(y.dtype()));
  out.made = false;
}

// Where sums into a gradient start; also what an empty batch contributes.
inline void start_sum(Stream& stream, Grad grad) {
  if (grad && grad.mode == GradMode::Overwrite) grad.tensor.zero(stream);
}

// Writes or adds one element of a gradient.
template <class T>
inline void put(T& target, T value, GradMode mode) {
  target = mode == GradMode::Accumulate ? target + value : value;
}

}  // namespace tessera
