// dw of conv2d as an implicit matrix product: rows k, columns r s c, depth n p q. The result is
// small and the depth is long: blocks take parts of it and leave partial sums, which a second
// kernel adds in order. db is the sum of dy over its pixels, in parts that the same launch adds: of
// A's fragments in bf16 (products.h), else by a kernel of its own. One channel on one side:
// conv_thin.h.
#include "kernels/cuda/columns.h"
#include "kernels/cuda/conv_launch.h"
#include "kernels/cuda/conv_thin.h"

namespace tessera::TESSERA_CUDA {
namespace conv {

Tensor sums_of_pixels(Stream& stream, const Tensor& dy) {
  // A block sums few pixels, in bf16 four packs a thread, so that all of a GPU has some.
  const int64_t K = dy.dim(3), pixels = dy.numel() / K;
  const int64_t count = 8192 / std::clamp<int64_t>(K, 16, 256);
  const int64_t parts = ceil_div(pixels, count);
  Tensor partial = Tensor::empty(stream, {parts, K}, DType::f32);
  with_storage(dy.dtype(), [&](auto zero) {
    using T = decltype(zero);
    sum_rows(stream, parts, pixels, count, K, dy.data<T>(),
             PutSum<float>{partial.data<float>(), false, K});
  });
  return partial;
}

void run_halo_wgrad(Stream& stream, int N, const Image<bf16>& x, const Tensor& dy, Grad dw,
                    int first, Grad db) {
  const int K = int(dw.tensor.dim(0)), row = int(dw.tensor.dim(3));
  float* const to = dw.tensor.data<float>() + first;
  with_wgrad_tile<3>(x.W, [&](auto tile) {
    using Tile = decltype(tile);
    const WgradSplit s = split_of<Tile>(N, x.H, x.W, K, x.C);
    if (s.parts == 1)  // is the result; more are added in order
      return launch_wgrad<Tile>(
          stream, N, x, s,
          {dy.data<bf16>(), K, x.C, 0, 0, to, row, data_or_null<float>(db.tensor),
           dw.mode == GradMode::Accumulate, db.mode == GradMode::Accumulate});
    Tensor sums = Tensor::empty(stream, {s.parts, K, 9, x.C}), bias_sums;
    if (db) bias_sums = Tensor::empty(stream, {s.parts, K});
    launch_wgrad<Tile>(stream, N, x, s,
                       {dy.data<bf16>(), K, x.C, 0, 0, sums.data<float>(), x.C,
                        data_or_null<float>(bias_sums), false, false});
    sum_parts(stream, parts_of(sums, to, x.C, row, dw.mode), parts_of(bias_sums, db));
  });
}

}  // namespace conv

void conv2d_bwd_weight(Stream& stream, const ConvSpec& spec, const Tensor& x, const Tensor& dy,
                       Grad dw, Grad db) {
  const conv::Sizes s(ConvProblem::of(spec, x.shape(), dw.tensor.shape()));
  if (conv::halo_wgrad_fits(stream, s, dy, dw) && packs_fit<bf16, 8>(s.C, x.data<bf16>()))
    return conv::run_halo_wgrad(stream, int(dy.dim(0)), {x.data<bf16>(), s.H, s.W, s.C}, dy, dw, 0,
                                db);
  if (conv::is_from_one(s) || conv::is_to_one(s))
    return conv::thin_bwd_weight(stream, s, x, dy, dw, db);
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.data<T>();
    conv::run_bwd_weight(stream, s, conv::Image<T>{from, s.H, s.W, s.C},
                         packs_fit<T, kPack<T>>(s.C, from), dy, dw, db);
  });
}

}  // namespace tessera::TESSERA_CUDA
