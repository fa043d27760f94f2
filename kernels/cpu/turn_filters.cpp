// Filters as their data gradients read them. A copy; no kernel of the CPU wants it.
#include "kernels/cpu/loops.h"

namespace tessera {
namespace {

template <class T>
void turn(const Tensor& w, Tensor turned) {
  const int64_t K = w.dim(0), taps = w.dim(1) * w.dim(2), C = w.dim(3), channels = turned.dim(0);
  if (turned.numel() == 0) return;
  const T* from = w.data<T>() + (C - channels);
  T* to = turned.data<T>();
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t tap = taps; tap-- > 0;)
      for (int64_t k = 0; k < K; ++k) *to++ = from[(k * taps + tap) * C + c];
}

}  // namespace

namespace oracle {
void turn_filters(Stream&, std::span<const TurnedFilter> filters) {
  for (const TurnedFilter& f : filters) turn<double>(f.w, f.turned);
}
}  // namespace oracle

namespace cpu {
void turn_filters(Stream&, std::span<const TurnedFilter> filters) {
  for (const TurnedFilter& f : filters)
    with_storage(f.w.dtype(), [&]<class T>() { turn<T>(f.w, f.turned); });
}
}  // namespace cpu

ON_CUDA(turn_filters)

void turn_filters(Stream& stream, std::span<const TurnedFilter> filters) {
  if (filters.empty()) return;
  const DType dtype = filters[0].w.dtype();
  for (const TurnedFilter& f : filters) {
    const Shape &w = f.w.shape(), &turned = f.turned.shape();
    ENSURE(w.rank() == 4, "turn_filters: w is ", w, ", expected [K,R,S,C]");
    ENSURE(turned.rank() == 4 && turned[0] <= w[3], "turn_filters: turned is ", turned, ", w is ",
           w);
    expect("turn_filters: w", f.w, w, dtype);
    expect("turn_filters: turned", f.turned, {turned[0], w[1], w[2], w[0]}, dtype);
  }
  DISPATCH(stream, dtype, turn_filters(stream, filters));
}

}  // namespace tessera
