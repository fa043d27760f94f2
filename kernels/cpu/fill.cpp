// x = value.
#include "kernels/cpu/loops.h"

namespace tessera {
namespace oracle {

void fill(Stream&, Tensor& x, double value) { std::fill_n(x.data<double>(), x.numel(), value); }

}  // namespace oracle

namespace cpu {

void fill(Stream&, Tensor& x, double value) {
  const float rounded = float(value);
  with_storage(x.dtype(), [&]<class T>() {
    put_all(x.data<T>(), x.numel(), GradMode::Overwrite, [=](int64_t) { return rounded; });
  });
}

}  // namespace cpu

ON_CUDA(fill)

void fill(Stream& stream, Tensor& x, double value) {
  ENSURE(x.defined(), "fill: x is undefined");
  DISPATCH(stream, x.dtype(), fill(stream, x, value));
}

}  // namespace tessera
