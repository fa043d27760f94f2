// The search for NaN and infinity. Normally there is none, and a vectorised count over blocks says
// so at the speed of memory; then only the first block that holds one is searched by element.
#include <cmath>

#include "kernels/cpu/loops.h"

namespace tessera {
namespace oracle {

void find_non_finite(Stream&, const Tensor& x, int64_t& index) {
  index = 0;
  while (index < x.numel() && std::isfinite(x.data<double>()[index])) ++index;
  if (index == x.numel()) index = -1;
}

}  // namespace oracle

namespace cpu {

template <class T>
bool all_finite(const T* x, int64_t n) {
  int bad = 0;
#pragma omp simd reduction(| : bad)
  for (int64_t i = 0; i < n; ++i) bad |= !std::isfinite(to_float(x[i]));
  return bad == 0;
}

template <class T>
int64_t first_non_finite(const Tensor& x) {
  const T* values = x.data<T>();
  const int64_t n = x.numel(), blocks = ceil_div(n, kBlock);
  int64_t first = blocks;
#pragma omp parallel for schedule(static) reduction(min : first)
  for (int64_t block = 0; block < blocks; ++block)
    if (!all_finite(values + block * kBlock, std::min(kBlock, n - block * kBlock)))
      first = std::min(first, block);
  const T* end = values + n;
  const T* found = std::find_if_not(values + std::min(first * kBlock, n), end,
                                    [](T value) { return std::isfinite(to_float(value)); });
  return found == end ? -1 : found - values;
}

void find_non_finite(Stream&, const Tensor& x, int64_t& index) {
  index = with_storage(x.dtype(), [&]<class T>() { return first_non_finite<T>(x); });
}

}  // namespace cpu

// The backends' form of it: index receives the result.
using FindNonFinite = void(Stream&, const Tensor& x, int64_t& index);
namespace simt {
FindNonFinite find_non_finite;
}
namespace gpu {
FindNonFinite find_non_finite;
}

int64_t find_non_finite(Stream& stream, const Tensor& x) {
  int64_t index = -1;
  DISPATCH(stream, x.dtype(), find_non_finite(stream, x, index));
  return index;
}

}  // namespace tessera
