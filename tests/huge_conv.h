// What the tests of convolutions past 2^31 elements share: shapes, numbers where the last blocks
// read them, and the definition.
#pragma once

#include <catch2/catch.hpp>

#include "tests/conv_paths.h"
#include "tests/huge.h"

namespace tessera {

inline constexpr ConvSpec kSame{1, 1, 1};  // 3x3

struct ConvStream : HugeStream {
  explicit ConvStream(const Path& path, uint64_t blocks = 2) : HugeStream(blocks, kReserveSums) {
    math = path.math;
  }
};

// Images of many pixels, of which the last kPixels are looked at, with what their windows reach.
inline constexpr int64_t N = 3, H = 4730, W = 4732, kPixels = 8;
inline constexpr int64_t kManyChannels = 32, kFewChannels = 8;  // packs; and odd numbers just above
static_assert(N * H * W * kManyChannels > k2e31 && N * H * W < int64_t{1} << 30);

inline void fill_last_windows(Huge& x) { x.fill_from(x.index(N - 1, H - 2, W - kPixels - 1, 0)); }

// Few pixels, the last kPixels of which are in the last tile of any height or width; numbers in the
// last channels of each.
inline constexpr int64_t kRows = 18, kColumns = 40;
inline constexpr int64_t kMany = int64_t{1} << 22, kFew = 64, kOdd = 21;
// The last tap meets no pixel of dy in the last row.
static_assert((kRows - 2) * kColumns * kMany > k2e31 && kFew * 9 * kMany > k2e31);

inline void fill_last_channels(Huge& x, int64_t count) {
  const int64_t C = x.tensor.dim(3);
  for (int64_t end = C; end <= x.tensor.numel(); end += C) x.fill(end - std::min(count, C), end);
}

// w's last `channels` channels as turn_filters makes them, the last `filled` of these at least; in
// bf16, which is where kernels read them. Made by a kernel they would be the work of its last
// blocks.
inline Tensor turned(Stream& stream, const Huge& w, int64_t channels, int64_t filled) {
  const int64_t K = w.tensor.dim(0), C = w.tensor.dim(3);
  if (w.tensor.dtype() != DType::bf16) return {};
  Tensor turned = Tensor::empty(stream, {channels, 3, 3, K}, DType::bf16);
  for (int64_t c = channels - std::min(filled, channels); c < channels; ++c)
    for (int64_t tap = 0; tap < 9; ++tap)
      for (int64_t k = 0; k < K; ++k)
        turned.data<bf16>()[(c * 9 + 8 - tap) * K + k] =
            w.tensor.data<bf16>()[(k * 9 + tap) * C + C - channels + c];
  return turned;
}

// The elements of an image and the zeros around it.
inline auto padded(const Huge& x) {
  return [&x](int64_t n, int64_t h, int64_t w, int64_t c) {
    const bool inside = h >= 0 && h < x.tensor.dim(1) && w >= 0 && w < x.tensor.dim(2);
    return inside ? x.at(x.index(n, h, w, c)) : 0.0;
  };
}
// concat(upsample(low), skip) and the zeros around it.
inline auto padded(const Huge& low, const Huge& skip) {
  return [&low, &skip](int64_t n, int64_t h, int64_t w, int64_t c) {
    const int64_t A = low.tensor.dim(3);
    return c < A ? padded(low)(n, h >> 1, w >> 1, c) : padded(skip)(n, h, w, c - A);
  };
}

// x(n, h, w, c) w(k, r, s, c) summed over the window of a pixel.
template <class Input>
double window_sum(const Huge& w, int64_t n, int64_t h, int64_t q, int64_t k, const Input& x) {
  double sum = 0;
  for (int64_t r = -1; r <= 1; ++r)
    for (int64_t s = -1; s <= 1; ++s)
      for (int64_t c = 0; c < w.tensor.dim(3); ++c)
        sum += x(n, h + r, q + s, c) * w.at(w.index(k, r + 1, s + 1, c));
  return sum;
}
// dy(n, p, q, k) w(k, r, s, c) summed over the windows that a pixel is in.
template <class Up>
double reached_sum(const Huge& w, int64_t n, int64_t h, int64_t q, int64_t c, const Up& dy) {
  double sum = 0;
  for (int64_t r = -1; r <= 1; ++r)
    for (int64_t s = -1; s <= 1; ++s)
      for (int64_t k = 0; k < w.tensor.dim(0); ++k)
        sum += dy(n, h + r, q + s, k) * w.at(w.index(k, 1 - r, 1 - s, c));
  return sum;
}
// dy(p, k) x(p + tap (1, 1), c) summed over the pixels, or every second row and column: dw of the
// filter's last tap.
template <class Input>
double last_tap_sum(const Huge& dy, int64_t k, int64_t c, const Input& x, bool odd_only = false) {
  double sum = 0;
  for (int64_t h = odd_only; h + 1 < kRows; h += 1 + odd_only)
    for (int64_t w = odd_only; w + 1 < kColumns; w += 1 + odd_only)
      sum += dy.at(dy.index(0, h, w, k)) * x(0, h + 1, w + 1, c);
  return sum;
}

// The last of the rows and columns of dw, and of db.
template <class Input>
inline void check_filter_grads(const HugeGrad& dw, const HugeGrad& db, const Huge& dy,
                               int64_t channels, const Input& x) {
  const int64_t K = dw.tensor.dim(0), C = dw.tensor.dim(3);
  int wrong = 0;
  for (int64_t k = K - 16; k < K; ++k) {
    double sum = db.before(k);
    for (int64_t pixel = 0; pixel < kRows * kColumns; ++pixel) sum += dy.at(pixel * K + k);
    wrong += db.at(k) != sum;
    for (int64_t c = C - channels; c < C; ++c) {
      const int64_t i = dw.index(k, 2, 2, c);
      wrong += dw.at(i) != dw.before(i) + last_tap_sum(dy, k, c, x);
    }
  }
  CHECK(wrong == 0);
}
inline void fill_filter_grads(HugeGrad& dw, HugeGrad& db) {
  db.fill();
  for (int64_t k = dw.tensor.dim(0) - 16; k < dw.tensor.dim(0); ++k)
    dw.fill(dw.index(k, 2, 3, 0) - 32, dw.index(k, 2, 3, 0));
}

}  // namespace tessera
