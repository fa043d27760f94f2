// The three matrix products of a convolution. Each is D [rows, columns] = sum over depth of
// A [rows, depth] B [columns, depth], and none of A and B is ever made: an operand says where the
// element at (outer, depth) lies in memory, outer being the row of A or the column of B.
//
//             rows         columns      depth        A              B
//   fwd       n p q        k            r s c        x (Windows)    w (Filters)
//   bwd_data  n h w        c            r s k        dy (Reached)   w (FiltersAcross)
//   bwd_weight k           r s c        n p q        dy (Pixels)    x (WindowsAcross)
//
// An operand has
//   kAlongDepth     whether neighbours in memory are neighbours in depth, or else in outer
//   outer(i), depth(i)   what is worth computing once for an index along one side; past the end: a
//                   place outside
//   at(outer, depth)     the address of the element, null outside: there a product has zeros
#pragma once

#include "kernels/cuda/conv_problem.h"

namespace tessera::TESSERA_CUDA::conv {

template <class Image>
struct Windows {
  using Element = typename Image::Element;
  using Outer = Place;
  using Depth = Tap;
  static constexpr bool kAlongDepth = true;
  Sizes sizes;
  Image image;

  __device__ __forceinline__ Place outer(int i) const { return sizes.window(i); }
  __device__ __forceinline__ Tap depth(int i) const { return sizes.tap_c(i); }
  __device__ __forceinline__ const Element* at(const Place& window, const Tap& tap) const {
    const int h = window.h + tap.r, w = window.w + tap.s;
    if (unsigned(h) >= unsigned(sizes.H) || unsigned(w) >= unsigned(sizes.W)) return nullptr;
    return image.at(window.n, h, w, tap.c);
  }
};

// The same elements with the sides exchanged.
template <class Image>
struct WindowsAcross {
  using Element = typename Image::Element;
  using Outer = Tap;
  using Depth = Place;
  static constexpr bool kAlongDepth = false;
  Windows<Image> windows;

  __device__ __forceinline__ Tap outer(int i) const { return windows.depth(i); }
  __device__ __forceinline__ Place depth(int i) const { return windows.outer(i); }
  __device__ __forceinline__ const Element* at(const Tap& tap, const Place& window) const {
    return windows.at(window, tap);
  }
};

// A matrix [lines, length] as it lies in memory; an index of -1 stands for outside.
template <class T, bool along_depth>
struct Matrix {
  using Element = T;
  using Outer = int64_t;
  using Depth = int64_t;
  static constexpr bool kAlongDepth = along_depth;
  const T* data;
  int lines, length;

  __device__ __forceinline__ int64_t outer(int i) const { return along_depth ? line(i) : point(i); }
  __device__ __forceinline__ int64_t depth(int i) const { return along_depth ? point(i) : line(i); }
  __device__ __forceinline__ const T* at(int64_t a, int64_t b) const {
    return a < 0 || b < 0 ? nullptr : data + (a + b);
  }

 private:
  __device__ __forceinline__ int64_t line(int i) const {
    return i < lines ? int64_t(i) * length : -1;
  }
  __device__ __forceinline__ int64_t point(int i) const { return i < length ? i : -1; }
};

// w as [K, RSC]: outer k, depth r s c.
template <class T>
using Filters = Matrix<T, true>;
// dy as [NPQ, K]: outer k, depth n p q.
template <class T>
using Pixels = Matrix<T, false>;

// Outer: pixels of dx. Depth: taps r s k. The pixel of dy whose window has this pixel under this
// tap, if there is one.
template <class T>
struct Reached {
  using Element = T;
  using Outer = Place;
  using Depth = Tap;
  static constexpr bool kAlongDepth = true;
  Sizes sizes;
  const T* dy;

  __device__ __forceinline__ Place outer(int i) const { return sizes.padded_pixel(i); }
  __device__ __forceinline__ Tap depth(int i) const { return sizes.tap_k(i); }
  __device__ __forceinline__ const T* at(const Place& pixel, const Tap& tap) const {
    // Where these are negative, the quotient of what they are as unsigned numbers is past P or Q.
    const int h = pixel.h - tap.r, w = pixel.w - tap.s;
    const int p = sizes.by_stride.quotient(h), q = sizes.by_stride.quotient(w);
    if (p >= sizes.P || q >= sizes.Q || p * sizes.stride != h || q * sizes.stride != w)
      return nullptr;
    return dy + int64_t((pixel.n * sizes.P + p) * sizes.Q + q) * sizes.K + tap.c;
  }
};

// Outer: channels c. Depth: taps r s k of w [K,R,S,..], C of whose channels begin at w, `row`
// apart.
template <class T>
struct FiltersAcross {
  using Element = T;
  using Outer = int;
  using Depth = int64_t;
  static constexpr bool kAlongDepth = false;
  Sizes sizes;
  const T* w;
  int row;

  __device__ __forceinline__ int outer(int i) const { return i < sizes.C ? i : -1; }
  __device__ __forceinline__ int64_t depth(int i) const {
    const Tap tap = sizes.tap_k(i);
    if (tap.r >= sizes.R) return -1;
    return (int64_t(tap.c) * sizes.R * sizes.S + tap.r * sizes.S + tap.s) * row;
  }
  __device__ __forceinline__ const T* at(int c, int64_t line) const {
    return c < 0 || line < 0 ? nullptr : w + (line + c);
  }
};

}  // namespace tessera::TESSERA_CUDA::conv
