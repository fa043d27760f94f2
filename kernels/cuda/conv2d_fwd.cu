// y = conv2d(x, w) + b as an implicit matrix product: rows n p q, columns k, depth r s c. A block
// has a tile of y; bound by arithmetic from some 64 channels on, by memory below.
#include "kernels/cuda/conv_launch.h"

namespace tessera::TESSERA_CUDA {

void conv2d_fwd(Stream& stream, const ConvSpec& spec, const Tensor& x, const Tensor& w,
                const Tensor& b, Tensor& y, MomentsOut* moments) {
  const conv::Sizes s(ConvProblem::of(spec, x.shape(), w.shape()));
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.data<T>();
    conv::run_fwd(stream, s, conv::Image<T>{from, s.H, s.W, s.C}, packs_fit<T, kPack<T>>(s.C, from),
                  w, b, y, moments);
  });
}

}  // namespace tessera::TESSERA_CUDA
