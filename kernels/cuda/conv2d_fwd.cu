// y = conv2d(x, w) + b as an implicit matrix product: rows n p q, columns k, depth r s c. A block
// has a tile of y; bound by arithmetic from some 64 channels on, by memory below.
#include "kernels/cuda/conv_launch.h"

namespace tessera::TESSERA_CUDA {

void conv2d_fwd(Stream& stream, const ConvSpec& spec, const Tensor& x, const Tensor& w,
                const Tensor& b, Tensor& y, MomentsOut* moments) {
  const conv::Sizes s(ConvProblem::of(spec, x.shape(), w.shape()));
  if (x.dtype() == DType::bf16 && conv::has_halo_kernels(stream, s) && !conv::is_tiny(s.H, s.W) &&
      packs_fit<bf16, 8>(s.C, x.data<bf16>(), w.data<bf16>()) &&
      packs_fit<bf16, 8>(s.K, y.data<bf16>()))
    return conv::with_halo_tile(int(x.dim(0)), s.H, s.W, s.K, [&](auto tile) {
      conv::launch_halo_fwd<decltype(tile)>(
          stream, int(x.dim(0)), s.H, s.W,
          conv::HaloSource<conv::StraightFilters>{{x.data<bf16>(), s.H, s.W, s.C},
                                                  {w.data<bf16>(), s.C, s.K}},
          {y.data<bf16>(), data_or_null<float>(b), s.K, false}, moments);
    });
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.data<T>();
    conv::run_fwd(stream, s, conv::Image<T>{from, s.H, s.W, s.C}, packs_fit<T, kPack<T>>(s.C, from),
                  w, b, y);
  });
}

}  // namespace tessera::TESSERA_CUDA
