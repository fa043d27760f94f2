// What GroupNorm's kernels share with the convolutions that take its sums while they have a tile at
// hand (conv_halo_norm.h). Partial sums are [2,N,parts,C]: two numbers for each channel of each
// part of an image, a slice of neighbouring pixels (columns.h) or a tile of a convolution.
#pragma once

#include "kernels/cuda/activation_math.h"
#include "kernels/cuda/index.h"

namespace tessera::TESSERA_CUDA {

struct None {
  template <class T>
  __device__ __forceinline__ static float value(float z) {
    return z;
  }
  template <class T>
  __device__ __forceinline__ static float derivative(float) {
    return 1.0f;
  }
};

// x [N,P,C], moments [N,G,2], gamma and beta [C]; beta, t [N,C] and residual [N,P,C] may be null.
template <class T>
struct NormArgs {
  const T* x;
  const float *moments, *gamma, *beta;
  const T *t, *residual;
  Divisor32 per_group;  // channels of a group
  int groups;

  // The moments of image n, [G,2].
  __device__ __forceinline__ const float* moments_of(int64_t n) const {
    return moments + 2 * n * groups;
  }
  // f(j, first, second) with the two numbers of its group in `pairs` [G,2] for V neighbouring
  // channels.
  template <int V, class F>
  __device__ __forceinline__ void for_groups(const float* pairs, int channel, const F& f) const {
    int group = channel, place = per_group.divide(group);
    pairs += 2 * group;
    float first = pairs[0], second = pairs[1];
    for (int j = 0; j < V; ++j) {
      if (j > 0 && ++place == per_group.divisor()) {
        place = 0, pairs += 2;
        first = pairs[0], second = pairs[1];
      }
      f(j, first, second);
    }
  }
};

// z = (x - mean) a + b of V channels; V > 1: where all addresses allow packs.
template <int V>
struct Affine {
  float mean[V], a[V], b[V] = {};

  template <class T>
  __device__ __forceinline__ Affine(const NormArgs<T>& in, int64_t n, int channel, int C) {
    load(in, n, channel, C);
    set(in, in.moments_of(n), channel);
  }
  // The same in two steps, for moments, [G,2] of image n, that are not known yet.
  Affine() = default;
  template <class T>
  __device__ __forceinline__ void load(const NormArgs<T>& in, int64_t n, int channel, int C) {
    const auto get = [&](const float* from, float(&to)[V]) {
      constexpr int W = V < 4 ? V : 4;
      for (int j = 0; j < V; j += W) {
        const auto values = Pack<float, W>::load(from + channel + j);
        for (int i = 0; i < W; ++i) to[j + i] = values[i];
      }
    };
    get(in.gamma, a);
    if (in.beta) get(in.beta, b);
    if (!in.t) return;
    const auto t = Pack<T, V>::load(in.t + n * C + channel);
    for (int j = 0; j < V; ++j) b[j] += t[j];
  }
  template <class T>
  __device__ __forceinline__ void set(const NormArgs<T>& in, const float* moments, int channel) {
    in.template for_groups<V>(moments, channel, [&](int j, float m, float rstd) {
      mean[j] = m;
      a[j] *= rstd;
    });
  }
  __device__ __forceinline__ float operator()(int j, float x) const {
    return (x - mean[j]) * a[j] + b[j];
  }
};

template <class T>
NormArgs<T> norm_args(const GroupNormSpec& spec, const Tensor& x, const Tensor& moments,
                      const Tensor& gamma, const Tensor& beta, const Tensor& t,
                      const Tensor& residual) {
  return {x.data<T>(),
          moments.data<float>(),
          gamma.data<float>(),
          data_or_null<float>(beta),
          data_or_null<T>(t),
          data_or_null<T>(residual),
          Divisor32(int(x.dim(3) / spec.groups)),
          int(spec.groups)};
}

// The tiles of TH x TW pixels, `apart` from each other, of an image, as parts: those of the same
// rectangle follow each other (HaloSizes::tile).
class TileParts {
 public:
  TileParts(int H, int W, int TH, int TW, int apart)
      : apart_(apart),
        H_(H / apart),
        W_(W / apart),
        TH_(TH),
        TW_(TW),
        across_(int(ceil_div(W_, TW))),
        by_across_(across_),
        by_phases_(apart * apart),
        count_(int(ceil_div(H_, TH)) * across_ * apart * apart) {}

  int64_t image() const { return int64_t(H_) * W_ * apart_ * apart_; }  // pixels
  int across() const { return across_; }
  int count() const { return count_; }
  __device__ __forceinline__ int pixels(int part) const {
    int row = by_phases_.quotient(part);
    const int w = by_across_.divide(row) * TW_, h = row * TH_;
    return min(TH_, H_ - h) * min(TW_, W_ - w);
  }

 private:
  int apart_, H_, W_, TH_, TW_, across_;
  Divisor32 by_across_, by_phases_;
  int count_;
};

// moments [N,G,2] from partial: the mean and M2 (sum of squared deviations from it) of each channel
// of each tile.
void merge_moments(Stream& stream, const TileParts& parts, const GroupNormSpec& spec,
                   const Tensor& partial, Tensor& moments);

// Sums over the images: dbeta, then dgamma; null where not wanted.
struct PutParameters {
  float *dbeta, *dgamma;
  bool accumulate_dbeta, accumulate_dgamma;
  PutParameters(Grad dbeta, Grad dgamma)
      : dbeta(data_or_null<float>(dbeta.tensor)),
        dgamma(data_or_null<float>(dgamma.tensor)),
        accumulate_dbeta(dbeta.mode == GradMode::Accumulate),
        accumulate_dgamma(dgamma.mode == GradMode::Accumulate) {}
  __device__ void operator()(int64_t o, int c, float sum) const {
    if (o == 0 && dbeta) put_at(dbeta + c, sum, accumulate_dbeta);
    if (o == 1 && dgamma) put_at(dgamma + c, sum, accumulate_dgamma);
  }
};

// The rest of group_norm_act_bwd from partial: the sums of dz, the gradient behind the norm, and
// of dz xhat. x, dy, dx [N,H,W,C] and t in bf16, C % 8 == 0; these, gamma and beta at addresses of
// packs; dx may be dy.
void norm_act_bwd_from_sums(Stream& stream, const NormAct& spec, const Tensor& x,
                            const Tensor& moments, const Tensor& gamma, const Tensor& beta,
                            const Tensor& t, const Tensor& dy, const Tensor& partial, Grad dx,
                            Grad dgamma, Grad dbeta, Grad dt);

}  // namespace tessera::TESSERA_CUDA
