// x = value, for what is small: one element a thread.
#include "kernels/cuda/kernel.h"

namespace tessera::TESSERA_CUDA {
namespace {

template <class T>
struct Fill {
  T* x;
  float value;
  __device__ void operator()(int64_t i) const { x[i] = from_float<T>(value); }
};

}  // namespace

void fill(Stream& stream, Tensor& x, double value) {
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    for_each(stream, x.numel(), Fill<T>{x.data<T>(), float(value)});
  });
}

}  // namespace tessera::TESSERA_CUDA
