// Activations, elementwise and bound by memory: packs of 16 bytes where the shape allows.
#include "kernels/cuda/activation_math.h"
#include "kernels/cuda/kernel.h"

namespace tessera::TESSERA_CUDA {
namespace {

template <class T, int N, Activation act>
struct ActFwd {
  const T* x;
  T* y;
  __device__ void operator()(int64_t i) const {
    const Pack<T, N> in = Pack<T, N>::load(x + i * N);
    float values[N];
    for (int j = 0; j < N; ++j) values[j] = Act<act>::template value<T>(in[j]);
    Pack<T, N>::of(values).store(y + i * N);
  }
};

template <class T, int N, Activation act>
struct ActBwd {
  const T *x, *dy;
  T* dx;
  bool accumulate;
  __device__ void operator()(int64_t i) const {
    const Pack<T, N> in = Pack<T, N>::load(x + i * N), up = Pack<T, N>::load(dy + i * N);
    Pack<T, N> old;
    if (accumulate) old = Pack<T, N>::load(dx + i * N);
    float values[N];
    for (int j = 0; j < N; ++j) {
      const float value = up[j] * Act<act>::template derivative<T>(in[j]);
      values[j] = accumulate ? old[j] + value : value;
    }
    Pack<T, N>::of(values).store(dx + i * N);
  }
};

}  // namespace

void activation_fwd(Stream& stream, Activation act, const Tensor& x, Tensor& y) {
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_activation(act, [&]<Activation a>() {
      const T* from = x.data<T>();
      T* to = y.data<T>();
      const int64_t n = x.numel();
      if (packs_fit<T, kPack<T>>(n, from, to))
        return for_each(stream, n / kPack<T>, ActFwd<T, kPack<T>, a>{from, to});
      for_each(stream, n, ActFwd<T, 1, a>{from, to});
    });
  });
}

void activation_bwd(Stream& stream, Activation act, const Tensor& x, const Tensor& dy, Grad dx) {
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_activation(act, [&]<Activation a>() {
      const T *from = x.data<T>(), *up = dy.data<T>();
      T* to = dx.tensor.data<T>();
      const int64_t n = x.numel();
      const bool add = dx.mode == GradMode::Accumulate;
      if (packs_fit<T, kPack<T>>(n, from, up, to))
        return for_each(stream, n / kPack<T>, ActBwd<T, kPack<T>, a>{from, up, to, add});
      for_each(stream, n, ActBwd<T, 1, a>{from, up, to, add});
    });
  });
}

}  // namespace tessera::TESSERA_CUDA
