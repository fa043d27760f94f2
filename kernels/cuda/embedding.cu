// Sinusoidal embedding of the timestep: y [N,dim] = [sin(t f), cos(t f)], f_i = 10000^(-i/half).
// The angle reaches 1000 and more, where a float has few digits left: it is a double until whole
// turns are taken off. The tensor is tiny.
#include "core/rng.h"
#include "kernels/cuda/kernel.h"

namespace tessera::TESSERA_CUDA {
namespace {

template <class T>
struct TimestepEmbedding {
  const int32_t* t;  // [N]
  T* y;
  int64_t half;
  // Element i of [N,half]: a sine and its cosine.
  __device__ void operator()(int64_t i) const {
    const int64_t n = i / half, k = i % half;
    constexpr double kLog10000 = 9.210340371976184, kTurn = 6.283185307179586;
    const double turns = t[n] * exp(-kLog10000 * double(k) / double(half)) / kTurn;
    float cosine, sine;
    cos_sin_turn(float(turns - floor(turns)), cosine, sine);
    T* const row = y + n * 2 * half;
    row[k] = from_float<T>(sine);
    row[k + half] = from_float<T>(cosine);
  }
};

}  // namespace

void timestep_embedding_fwd(Stream& stream, const Tensor& t, Tensor& y) {
  with_storage(y.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t half = y.dim(1) / 2;
    for_each(stream, t.numel() * half, TimestepEmbedding<T>{t.data<int32_t>(), y.data<T>(), half});
  });
}

}  // namespace tessera::TESSERA_CUDA
