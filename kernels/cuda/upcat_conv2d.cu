// conv2d over x = concat(upsample(low), skip). Forward and the filter's gradient read low and skip
// where they would read x; the data's gradient goes to the two parts
// at once where halo tiles serve it, else it is made and then divided.
#include "kernels/cuda/conv_launch.h"

namespace tessera::TESSERA_CUDA {
namespace {

// The convolution over x, for skip [N,H,W,B] and w [K,R,R,A+B].
conv::Sizes sizes_of(const Shape& skip, const Shape& w) {
  const int pad = int(w[1] / 2);
  return conv::Sizes(ConvProblem::of({1, pad, pad}, {skip[0], skip[1], skip[2], w[3]}, w));
}

// Calls f(image, whether packs of 16 bytes fit it).
template <class T, class F>
void with_image(const Tensor& low, const Tensor& skip, const F& f) {
  const conv::UpcatImage<T> image{low.data<T>(),    skip.data<T>(),  int(skip.dim(1)),
                                  int(skip.dim(2)), int(low.dim(3)), int(skip.dim(3))};
  f(image,
    packs_fit<T, kPack<T>>(image.A, image.low) && packs_fit<T, kPack<T>>(image.B, image.skip));
}

// The gradients of both parts in one pass, by halo tiles; false where these cannot.
bool halo_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w, Grad dlow, Grad dskip) {
  if (dy.dtype() != DType::bf16) return false;
  const conv::Sizes s = sizes_of(dskip.tensor.shape(), w.shape());
  const int A = int(dlow.tensor.dim(3)), B = int(dskip.tensor.dim(3));
  const bf16 *up = dy.data<bf16>(), *filters = w.data<bf16>();
  bf16 *low = dlow.tensor.data<bf16>(), *skip = dskip.tensor.data<bf16>();
  if (!conv::has_halo_kernels(stream, s) || A % 128 != 0 || !packs_fit<bf16, 8>(B, low, skip) ||
      !packs_fit<bf16, 8>(s.K, up, filters))
    return false;
  conv::run_halo(stream, int(dy.dim(0)), conv::Image<bf16>{up, s.P, s.Q, s.K},
                 conv::TurnedFilters{filters, s.K, s.C},
                 conv::HaloParts{low, skip, A, B, dlow.mode == GradMode::Accumulate,
                                 dskip.mode == GradMode::Accumulate});
  return true;
}

}  // namespace

void upcat_conv2d_fwd(Stream& stream, const Tensor& low, const Tensor& skip, const Tensor& w,
                      const Tensor& b, Tensor& y, MomentsOut* moments) {
  with_storage(low.dtype(), [&](auto zero) {
    with_image<decltype(zero)>(low, skip, [&](const auto& image, bool packed) {
      conv::run_fwd(stream, sizes_of(skip.shape(), w.shape()), image, packed, w, b, y, moments);
    });
  });
}

void upcat_conv2d_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w, Grad dlow,
                           Grad dskip) {
  const Shape& skip = dskip.tensor.shape();
  const int pad = int(w.dim(1) / 2);
  if (halo_bwd_data(stream, dy, w, dlow, dskip)) return;
  Tensor dx = Tensor::empty(stream, {skip[0], skip[1], skip[2], w.dim(3)}, dy.dtype());
  conv2d_bwd_data(stream, {1, pad, pad}, dy, w, {dx});
  concat_upsample_bwd(stream, dx, dlow, dskip);
}

void upcat_conv2d_bwd_weight(Stream& stream, const Tensor& low, const Tensor& skip,
                             const Tensor& dy, Grad dw, Grad db) {
  with_storage(low.dtype(), [&](auto zero) {
    with_image<decltype(zero)>(low, skip, [&](const auto& image, bool packed) {
      conv::run_bwd_weight(stream, sizes_of(skip.shape(), dw.tensor.shape()), image, packed, dy, dw,
                           db);
    });
  });
}

}  // namespace tessera::TESSERA_CUDA
