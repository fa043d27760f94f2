// GELU, elementwise and bound by memory: packs of 16 bytes where the shape allows.
#include "kernels/cuda/gelu_math.h"
#include "kernels/cuda/kernel.h"

namespace tessera::TESSERA_CUDA {
namespace {

template <class T, int N, GeluForm form>
struct GeluFwd {
  const T* x;
  T* y;
  __device__ void operator()(int64_t i) const {
    Pack<T, N> in = Pack<T, N>::load(x + i * N), out;
    for (int j = 0; j < N; ++j) out.set(j, gelu_of<form>(in[j]));
    out.store(y + i * N);
  }
};

template <class T, int N, GeluForm form>
struct GeluBwd {
  const T *x, *dy;
  T* dx;
  bool accumulate;
  __device__ void operator()(int64_t i) const {
    const Pack<T, N> in = Pack<T, N>::load(x + i * N), up = Pack<T, N>::load(dy + i * N);
    Pack<T, N> out;
    if (accumulate) out = Pack<T, N>::load(dx + i * N);
    for (int j = 0; j < N; ++j) {
      const float value = up[j] * gelu_derivative_of<form>(in[j]);
      out.set(j, accumulate ? out[j] + value : value);
    }
    out.store(dx + i * N);
  }
};

// Calls f(form constant) for a form known at run time.
template <class F>
void with_form(GeluForm form, F&& f) {
  if (form == GeluForm::Exact) return f(std::integral_constant<GeluForm, GeluForm::Exact>{});
  f(std::integral_constant<GeluForm, GeluForm::Tanh>{});
}

}  // namespace

void gelu_fwd(Stream& stream, GeluForm form, const Tensor& x, Tensor& y) {
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_form(form, [&](auto f) {
      const T* from = x.data<T>();
      T* to = y.data<T>();
      const int64_t n = x.numel();
      if (packs_fit<T, kPack<T>>(n, from, to))
        return for_each(stream, n / kPack<T>, GeluFwd<T, kPack<T>, f.value>{from, to});
      for_each(stream, n, GeluFwd<T, 1, f.value>{from, to});
    });
  });
}

void gelu_bwd(Stream& stream, GeluForm form, const Tensor& x, const Tensor& dy, Grad dx) {
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_form(form, [&](auto f) {
      const T *from = x.data<T>(), *up = dy.data<T>();
      T* to = dx.tensor.data<T>();
      const int64_t n = x.numel();
      const bool add = dx.mode == GradMode::Accumulate;
      if (packs_fit<T, kPack<T>>(n, from, up, to))
        return for_each(stream, n / kPack<T>, GeluBwd<T, kPack<T>, f.value>{from, up, to, add});
      for_each(stream, n, GeluBwd<T, 1, f.value>{from, up, to, add});
    });
  });
}

}  // namespace tessera::TESSERA_CUDA
