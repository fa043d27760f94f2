// One convolution on the device: its sizes in 32 bits with the divisors that index arithmetic
// needs, and where its input lies: one image, or upsampled and skip images that are read as if they
// were joined.
#pragma once

#include "kernels/cuda/index.h"

namespace tessera::TESSERA_CUDA::conv {

// A coordinate that lies outside of every image, and still does when another one is added.
inline constexpr int kNowhere = 1 << 29;

// Image n, and a row and a column there (of x, or of x with its padding).
struct Place {
  int n, h, w;
};
// A filter's row and column, and a channel.
struct Tap {
  int r, s, c;
};

// ConvProblem for kernels. Pixels are counted in 32 bits, elements in 64.
struct Sizes {
  int H, W, C, K, R, S, P, Q, stride, pad_h, pad_w;
  int x_pixels, y_pixels;  // N H W, N P Q
  Divisor32 by_H, by_W, by_C, by_K, by_S, by_P, by_Q, by_stride;

  // Throws for 2^30 pixels and more.
  explicit Sizes(const ConvProblem& p)
      : H(int(p.H)),
        W(int(p.W)),
        C(int(p.C)),
        K(int(p.K)),
        R(int(p.R)),
        S(int(p.S)),
        P(int(p.P)),
        Q(int(p.Q)),
        stride(p.spec.stride),
        pad_h(p.spec.pad_h),
        pad_w(p.spec.pad_w),
        x_pixels(int(p.N * p.H * p.W)),
        y_pixels(int(p.N * p.P * p.Q)),
        by_H(H),
        by_W(W),
        by_C(C),
        by_K(K),
        by_S(S),
        by_P(P),
        by_Q(Q),
        by_stride(stride) {
    constexpr int64_t kLimit = int64_t{1} << 30;
    ENSURE(p.N * p.H * p.W < kLimit && p.N * p.P * p.Q < kLimit,
           "conv2d: the CUDA kernels count pixels up to 2^30; x is ", p.x(), ", y is ", p.y());
    ENSURE(p.R * p.S * p.C < kLimit && p.R * p.S * p.K < kLimit && p.H < kNowhere / 4 &&
               p.W < kNowhere / 4 && pad_h < kNowhere / 4 && pad_w < kNowhere / 4,
           "conv2d: w is ", p.w(), ", x is ", p.x(), ", padding ", pad_h, ", ", pad_w);
  }
  int taps_c() const { return R * S * C; }
  int taps_k() const { return R * S * K; }

  // Where in x the filter's tap (0,0) lies for the m-th pixel of y.
  __device__ __forceinline__ Place window(int m) const {
    if (m >= y_pixels) return {0, kNowhere, 0};
    const int q = by_Q.divide(m), p = by_P.divide(m);
    return {m, p * stride - pad_h, q * stride - pad_w};
  }
  // The m-th pixel of x, in coordinates that count the padding.
  __device__ __forceinline__ Place padded_pixel(int m) const {
    if (m >= x_pixels) return {0, -kNowhere, 0};
    const int w = by_W.divide(m), h = by_H.divide(m);
    return {m, h + pad_h, w + pad_w};
  }
  // The i-th of the filter's R S C or R S K taps.
  __device__ __forceinline__ Tap tap_c(int i) const { return tap(i, by_C); }
  __device__ __forceinline__ Tap tap_k(int i) const { return tap(i, by_K); }

 private:
  __device__ __forceinline__ Tap tap(int i, const Divisor32& by_channels) const {
    const int c = by_channels.divide(i), s = by_S.divide(i);
    return {i < R ? i : kNowhere, s, c};
  }
};

// x [N,H,W,C]
template <class T>
struct Image {
  using Element = T;
  const T* x;
  int H, W, C;

  // The address of an element, or of C % pack == 0 neighbours.
  __device__ __forceinline__ const T* at(int n, int h, int w, int c) const {
    return x + int64_t((n * H + h) * W + w) * C + c;
  }
};

// x = concat(upsample(low), skip): low [N,H/2,W/2,A], skip [N,H,W,B].
template <class T>
struct UpcatImage {
  using Element = T;
  const T *low, *skip;
  int H, W, A, B;

  __device__ __forceinline__ const T* at(int n, int h, int w, int c) const {
    if (c < A) return low + int64_t((n * (H / 2) + h / 2) * (W / 2) + w / 2) * A + c;
    return skip + int64_t((n * H + h) * W + w) * B + (c - A);
  }
};

}  // namespace tessera::TESSERA_CUDA::conv
