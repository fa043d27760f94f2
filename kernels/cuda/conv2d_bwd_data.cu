// dx of conv2d as an implicit matrix product: rows n h w, columns c, depth r s k. A block has a
// tile of dx and gathers what reached it, so nothing is scattered; with a stride, the taps that do
// not meet a pixel are zeros that are multiplied all the same. But where windows tile the image
// (2x2, stride 2), each pixel of dy gives one patch of dx: a plain product, whose results are
// written as patches. To one channel: conv_thin.h.
#include "kernels/composed.h"
#include "kernels/cuda/conv_launch.h"
#include "kernels/cuda/conv_thin.h"

namespace tessera::TESSERA_CUDA {
namespace conv {
namespace {

// Whether halo tiles compute dx of this convolution.
bool halo_bwd_data_fits(Stream& stream, const ConvSpec& spec, const Tensor& dy, const Tensor& w,
                        const Tensor& dx) {
  if (dy.dtype() != DType::bf16) return false;
  const Sizes s(ConvProblem::of(spec, dx.shape(), w.shape()));
  return has_halo_kernels(stream, s) && !is_tiny(s.H, s.W) &&
         packs_fit<bf16, 8>(s.K, dy.data<bf16>()) && packs_fit<bf16, 8>(s.C, dx.data<bf16>());
}

// Whether the windows cover x, and no pixel twice.
bool windows_tile(const Sizes& s) {
  return s.stride > 1 && s.R == s.stride && s.S == s.stride && s.pad_h == 0 && s.pad_w == 0 &&
         s.H == s.P * s.stride && s.W == s.Q * s.stride;
}

// D [n p q, r s c] = dy [n p q, k] w [k, r s c]. Row m of D is a patch of dx: R lines of S C
// elements, W C apart, of which those of the next row follow; after Q rows, R - 1 lines are behind.
template <class T>
void run_patches(Stream& stream, const Sizes& s, const Tensor& dy, const Tensor& w, Grad dx) {
  constexpr int V = kPack<T>;
  const int64_t line = int64_t(s.S) * s.C, image_line = int64_t(s.W) * s.C;
  const Product<Matrix<T, true>, Matrix<T, false>> p{
      {dy.data<T>(), s.y_pixels, s.K},
      {w.data<T>(), s.K, s.taps_c()},
      s.y_pixels,
      s.taps_c(),
      s.K,
      packs_fit<T, V>(s.K, dy.data<T>()) && packs_fit<T, V>(s.taps_c(), w.data<T>())};
  run_pixels(stream, p,
             Epilogue<T>{dx.tensor.data<T>(),
                         nullptr,
                         dx.mode == GradMode::Accumulate,
                         {line, Divisor32(s.Q), Divisor32(int(line)), (s.R - 1) * image_line,
                          image_line - line}});
}

}  // namespace

void run_bwd_data(Stream& stream, const Sizes& s, const Tensor& dy, const Tensor& w, int first,
                  Grad dx) {
  with_storage(dy.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T *up = dy.data<T>(), *filters = w.data<T>() + first;
    const int row = int(w.dim(3));
    const Product<Reached<T>, FiltersAcross<T>> p{{s, up},
                                                  {s, filters, row},
                                                  s.x_pixels,
                                                  s.C,
                                                  s.taps_k(),
                                                  packs_fit<T, kPack<T>>(s.K, up) &&
                                                      packs_fit<T, kPack<T>>(s.C, filters) &&
                                                      row % kPack<T> == 0};
    run_pixels(stream, p, nullptr, dx.tensor.data<T>(), dx.mode);
  });
}

}  // namespace conv

void conv2d_bwd_data(Stream& stream, const ConvSpec& spec, const Tensor& dy, const Tensor& w,
                     Grad dx, const FilterForms& forms) {
  const conv::Sizes s(ConvProblem::of(spec, dx.tensor.shape(), w.shape()));
  if (conv::halo_bwd_data_fits(stream, spec, dy, w, dx.tensor)) {
    const Tensor turned = conv::turned_of(stream, w, forms.turned, s.C);
    return conv::run_halo_grad(
        stream, int(dy.dim(0)), {{dy.data<bf16>(), s.P, s.Q, s.K}, {turned.data<bf16>(), s.K, s.C}},
        {dx.tensor.data<bf16>(), nullptr, s.C, dx.mode == GradMode::Accumulate});
  }
  if (conv::is_to_one(s)) return conv::thin_bwd_data(stream, s, dy, w, dx);
  if (!conv::windows_tile(s)) return conv::run_bwd_data(stream, s, dy, w, 0, dx);
  with_storage(dy.dtype(),
               [&](auto zero) { conv::run_patches<decltype(zero)>(stream, s, dy, w, dx); });
}

// With halo tiles the convolution takes the norm's sums while it has a tile; else the two are done
// one after the other.
void norm_act_conv2d_bwd(Stream& stream, const NormAct& spec, const ConvSpec& conv, const Tensor& x,
                         const Tensor& moments, const Tensor& gamma, const Tensor& beta,
                         const Tensor& t, const Tensor& w, const Tensor& dy, Grad dx, Grad dgamma,
                         Grad dbeta, Grad dt, const FilterForms& forms) {
  if (!conv::halo_bwd_data_fits(stream, conv, dy, w, x) ||
      !packs_fit<bf16, 8>(0, data_or_null<bf16>(dx.tensor), data_or_null<bf16>(t)) ||
      !packs_fit<float, 4>(0, gamma.data<float>(), data_or_null<float>(beta)))
    return composed::norm_act_conv2d_bwd(stream, spec, conv, x, moments, gamma, beta, t, w, dy, dx,
                                         dgamma, dbeta, dt, forms);
  Tensor dh = dx && dx.mode == GradMode::Overwrite ? dx.tensor
                                                   : Tensor::empty(stream, x.shape(), x.dtype());
  const auto in = norm_args<bf16>(spec.norm, x, moments, gamma, beta, t, {});
  const int N = int(dy.dim(0)), H = int(dy.dim(1)), W = int(dy.dim(2)), K = int(w.dim(0)),
            C = int(w.dim(3));
  const Tensor turned = conv::turned_of(stream, w, forms.turned, C);
  const conv::HaloSource source{{dy.data<bf16>(), H, W, K}, {turned.data<bf16>(), K, C}};
  with_activation(spec.act, [&]<Activation a>() {
    conv::with_halo_tile(conv::tile_for(stream, true, N, source), [&](auto tile) {
      conv::launch_halo_sums<decltype(tile)>(
          stream, N, H, W, C, source,
          [&](const conv::TileSums& to) {
            return conv::HaloNormGrad<a>{in, dh.data<bf16>(), to};
          },
          [&](const Tensor& partial, const TileParts&) {
            norm_act_bwd_from_sums(stream, spec, x, moments, gamma, beta, t, dh, partial, dx,
                                   dgamma, dbeta, dt);
          });
    });
  });
}

}  // namespace tessera::TESSERA_CUDA
