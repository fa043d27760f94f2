// Sinusoidal embedding of the timestep: y = [sin(t f), cos(t f)], f_i = 10000^(-i/half),
// half = dim/2. Vaswani et al., "Attention is all you need" (2017). The angle t f reaches 1000 and
// more, where a float has few digits left: it is a double on the fast path too. The tensor is tiny.
#include <cmath>

#include "kernels/cpu/loops.h"

namespace tessera {
namespace oracle {

void timestep_embedding_fwd(Stream&, const Tensor& t, Tensor& y) {
  const int64_t dim = y.dim(1), half = dim / 2;
  for (int64_t n = 0; n < t.numel(); ++n)
    for (int64_t i = 0; i < dim; ++i) {
      const double angle = t.data<int32_t>()[n] * std::pow(10000.0, -double(i % half) / half);
      y.data<double>()[n * dim + i] = i < half ? std::sin(angle) : std::cos(angle);
    }
}

}  // namespace oracle

namespace cpu {

void timestep_embedding_fwd(Stream&, const Tensor& t, Tensor& y) {
  const int64_t N = t.numel(), dim = y.dim(1), half = dim / 2;
  const int32_t* steps = t.data<int32_t>();
  with_storage(y.dtype(), [&]<class T>() {
    T* to = y.data<T>();
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < half; ++i) {
      const double frequency = std::exp(-std::log(10000.0) * double(i) / double(half));
      for (int64_t n = 0; n < N; ++n) {
        to[n * dim + i] = stored<T>(float(std::sin(steps[n] * frequency)));
        to[n * dim + half + i] = stored<T>(float(std::cos(steps[n] * frequency)));
      }
    }
  });
}

}  // namespace cpu

ON_CUDA(timestep_embedding_fwd)

void timestep_embedding_fwd(Stream& stream, const Tensor& t, Tensor& y) {
  ENSURE(y.rank() == 2 && y.dim(1) % 2 == 0, "timestep_embedding_fwd: y is ", y.shape(),
         ", expected [N,dim], dim even");
  expect("timestep_embedding_fwd: t", t, {y.dim(0)}, DType::i32);
  DISPATCH(stream, y.dtype(), timestep_embedding_fwd(stream, t, y));
}

}  // namespace tessera
