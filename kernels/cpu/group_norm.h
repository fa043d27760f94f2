// The loops behind group_norm and group_norm_act (group_norm.cpp), for activations in f32 and bf16;
// the catalogue's functions and the oracle are in norm_ops.cpp.
#pragma once

#include <optional>

#include "kernels/dispatch.h"

namespace tessera::cpu {

// The activation behind the norm, if there is one.
using MaybeAct = std::optional<Activation>;

struct NormShape {
  int64_t N, P, C, G;  // images, pixels, channels, groups
  float eps;
  int64_t per_group() const { return C / G; }
};

// x [N,P,C], gamma and beta [C]; t [N,C] and residual [N,P,C] may be null. T: float or bf16.
template <class T>
struct NormArgs {
  const T* x;
  const float *gamma, *beta;
  const T *t = nullptr, *residual = nullptr;
};

// y = act(norm(x) gamma + beta + t) + residual; moments [N,G,2], which hold x's already if known.
template <class T>
void norm_act_fwd(Stream& stream, const NormShape& shape, MaybeAct act, const NormArgs<T>& in, T* y,
                  float* moments, bool known = false);
template <class T>
void norm_act_bwd(Stream& stream, const NormShape& shape, MaybeAct act, const NormArgs<T>& in,
                  const float* moments, const T* dy, Grad dx, Grad dgamma, Grad dbeta, Grad dt);

// The same without an activation for one image with a group for each channel, the pixels of which
// threads share (channel_norm.cpp).
template <class T>
void channel_norm_fwd(Stream& stream, const NormShape& shape, const NormArgs<T>& in, T* y,
                      float* moments, bool known);
template <class T>
void channel_norm_bwd(Stream& stream, const NormShape& shape, const NormArgs<T>& in,
                      const float* moments, const T* dy, Grad dx, Grad dgamma, Grad dbeta);

}  // namespace tessera::cpu
