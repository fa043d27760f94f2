// y = conv2d(x, w) + b as an implicit matrix product: rows n p q, columns k, depth r s c. A block
// has a tile of y; bound by arithmetic from some 64 channels on, by memory below. One channel on
// one side: conv_thin.h. 3x3 in bf16: halo tiles (conv_halo.h), also of the data's gradient, which
// is the same kernels' with filters turned around.
#include "kernels/cuda/conv_launch.h"
#include "kernels/cuda/conv_thin.h"

namespace tessera::TESSERA_CUDA {
namespace conv {

void run_halo_grad(Stream& stream, int N, const HaloSource& source, const HaloImage& dx) {
  with_halo_tile(tile_for(stream, true, N, source), [&](auto tile) {
    launch_halo<decltype(tile)>(stream, N, source.image.H, source.image.W, source.filters.columns,
                                source, dx);
  });
}

}  // namespace conv
namespace {

void halo_fwd(Stream& stream, const Tensor& x, const Tensor& w, const Tensor& b, Tensor& y,
              MomentsOut* moments) {
  const int N = int(x.dim(0)), H = int(x.dim(1)), W = int(x.dim(2)), C = int(x.dim(3)),
            K = int(w.dim(0));
  const conv::HaloSource source{{x.data<bf16>(), H, W, C}, {w.data<bf16>(), C, K}};
  conv::with_halo_tile(conv::tile_for(stream, false, N, source), [&](auto tile) {
    conv::launch_halo_fwd<decltype(tile)>(
        stream, N, H, W, source, {y.data<bf16>(), data_or_null<float>(b), K, false}, moments);
  });
}

}  // namespace

void conv2d_fwd(Stream& stream, const ConvSpec& spec, const Tensor& x, const Tensor& w,
                const Tensor& b, Tensor& y, MomentsOut* moments) {
  const conv::Sizes s(ConvProblem::of(spec, x.shape(), w.shape()));
  if (x.dtype() == DType::bf16 && conv::has_halo_kernels(stream, s) && !conv::is_tiny(s.H, s.W) &&
      packs_fit<bf16, 8>(s.C, x.data<bf16>(), w.data<bf16>()) &&
      packs_fit<bf16, 8>(s.K, y.data<bf16>()) && packs_fit<float, 2>(0, data_or_null<float>(b)))
    return halo_fwd(stream, x, w, b, y, moments);
  if (conv::is_from_one(s) || conv::is_to_one(s)) return conv::thin_fwd(stream, s, x, w, b, y);
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.data<T>();
    conv::run_fwd(stream, s, conv::Image<T>{from, s.H, s.W, s.C}, packs_fit<T, kPack<T>>(s.C, from),
                  w, b, y);
  });
}

}  // namespace tessera::TESSERA_CUDA
