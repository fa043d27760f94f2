// dx of conv2d as an implicit matrix product: rows n h w, columns c, depth r s k. A block has a
// tile of dx and gathers what reached it, so nothing is scattered; with a stride, the taps that do
// not meet a pixel are zeros that are multiplied all the same.
#include "kernels/cuda/conv_launch.h"

namespace tessera::TESSERA_CUDA {

void conv2d_bwd_data(Stream& stream, const ConvSpec& spec, const Tensor& dy, const Tensor& w,
                     Grad dx) {
  const conv::Sizes s(ConvProblem::of(spec, dx.tensor.shape(), w.shape()));
  with_storage(dy.dtype(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int V = kPack<T>;
    const T *up = dy.data<T>(), *filters = w.data<T>();
    if constexpr (sizeof(T) == 2)
      if (conv::has_halo_kernels(stream, s) && !conv::is_tiny(s) && packs_fit<T, V>(s.K, up) &&
          packs_fit<T, V>(s.C, filters, dx.tensor.data<T>()))
        return conv::run_halo(
            stream, int(dy.dim(0)), conv::Image<T>{up, s.P, s.Q, s.K},
            conv::TurnedFilters{filters, s.K, s.C},
            conv::HaloImage{dx.tensor.data<T>(), nullptr, s.C, dx.mode == GradMode::Accumulate});
    const conv::Product<conv::Reached<T>, conv::FiltersAcross<T>> p{
        {s, up}, {s, filters}, s.x_pixels,
        s.C,     s.taps_k(),   packs_fit<T, V>(s.K, up) && packs_fit<T, V>(s.C, filters)};
    conv::run_pixels(stream, p, nullptr, dx.tensor.data<T>(), dx.mode);
  });
}

}  // namespace tessera::TESSERA_CUDA
