// dw of conv2d as an implicit matrix product: rows k, columns r s c, depth n p q. The result is
// small and the depth is long: blocks take parts of it and leave partial sums, which a second
// kernel adds in order. db is the sum of dy over its pixels, in the same two steps.
#include "kernels/cuda/columns.h"
#include "kernels/cuda/conv_launch.h"

namespace tessera::TESSERA_CUDA {
namespace conv {

void bias_grad(Stream& stream, const Tensor& dy, Grad db) {
  if (!db) return;
  constexpr int kPixels = 1024;  // that a block sums
  const int64_t K = dy.dim(3), pixels = dy.numel() / K, parts = ceil_div(pixels, kPixels);
  Tensor partial = Tensor::empty(stream, {parts, K}, DType::f32);
  with_storage(dy.dtype(), [&](auto zero) {
    using T = decltype(zero);
    sum_rows(stream, parts, pixels, kPixels, K, dy.data<T>(),
             PutSum<float>{partial.data<float>(), false, K});
  });
  sum_parts(stream, partial, db);
}

}  // namespace conv

void conv2d_bwd_weight(Stream& stream, const ConvSpec& spec, const Tensor& x, const Tensor& dy,
                       Grad dw, Grad db) {
  const conv::Sizes s(ConvProblem::of(spec, x.shape(), dw.tensor.shape()));
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.data<T>();
    conv::run_bwd_weight(stream, s, conv::Image<T>{from, s.H, s.W, s.C},
                         packs_fit<T, kPack<T>>(s.C, from), dy, dw, db);
  });
}

}  // namespace tessera::TESSERA_CUDA
