// Each output is the weighted mean of the inputs under a triangle centred on it. Its half-width is
// one input pixel when enlarging and one output pixel when shrinking, so that shrinking averages
// (antialiasing). Weights are rounded to 22 bits after the point; rows are resized first, rounded
// to 8 bits, then columns; a side that keeps its length is left alone. That is what Pillow
// up to 12 computes (src/libImaging/Resample.c), down to the order of the double operations.
// (Pillow 13 does columns first where that is cheaper: there a few pixels differ by 1.)
#include "apps/resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/check.h"

namespace tessera {
namespace {

constexpr int kFractionBits = 22;  // 8 bits of pixel, 22 of weight, a sign and one to spare

uint8_t round_to_byte(int32_t sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kFractionBits, 0, 255));
}

constexpr int32_t kHalf = 1 << (kFractionBits - 1);

}  // namespace

Resizer::Resizer(int h, int w, int channels, int out_h, int out_w)
    : h_(h), w_(w), channels_(channels), out_h_(out_h), out_w_(out_w) {
  ENSURE(h > 0 && w > 0 && channels > 0 && out_h > 0 && out_w > 0, "resize ", h, "x", w, "x",
         channels, " to ", out_h, "x", out_w);
  if (w != out_w) columns_ = make_taps(w, out_w);
  if (h != out_h) rows_ = make_taps(h, out_h);
}

Resizer::Taps Resizer::make_taps(int in, int out) {
  const double scale = static_cast<double>(in) / out;
  const double half_width = std::max(scale, 1.0);
  const double slope = 1.0 / half_width;
  Taps taps;
  taps.stride = static_cast<int>(std::ceil(half_width)) * 2 + 1;
  taps.weights.resize(static_cast<size_t>(out) * taps.stride);
  std::vector<double> exact(taps.stride);
  for (int o = 0; o < out; ++o) {
    const double center = (o + 0.5) * scale;
    const int first = std::max(static_cast<int>(center - half_width + 0.5), 0);
    const int last = std::min(static_cast<int>(center + half_width + 0.5), in);
    double total = 0;
    for (int i = first; i < last; ++i) {
      const double distance = std::abs((i - center + 0.5) * slope);
      exact[i - first] = distance < 1.0 ? 1.0 - distance : 0.0;
      total += exact[i - first];
    }
    int32_t* weights = &taps.weights[static_cast<size_t>(o) * taps.stride];
    for (int k = 0; k < last - first; ++k) {
      weights[k] = static_cast<int32_t>(0.5 + exact[k] / total * (1 << kFractionBits));
    }
    taps.windows.push_back({first, last - first});
  }
  return taps;
}

void Resizer::horizontal(const uint8_t* src, uint8_t* dst) const {
  for (int y = 0; y < h_; ++y, src += static_cast<size_t>(w_) * channels_) {
    for (int x = 0; x < out_w_; ++x) {
      const auto [first, count] = columns_.windows[x];
      const int32_t* weights = &columns_.weights[static_cast<size_t>(x) * columns_.stride];
      for (int c = 0; c < channels_; ++c) {
        const uint8_t* in = src + static_cast<size_t>(first) * channels_ + c;
        int32_t sum = kHalf;
        for (int k = 0; k < count; ++k) sum += in[static_cast<size_t>(k) * channels_] * weights[k];
        *dst++ = round_to_byte(sum);
      }
    }
  }
}

void Resizer::vertical(const uint8_t* src, uint8_t* dst) const {
  const size_t row = static_cast<size_t>(out_w_) * channels_;
  std::vector<int32_t> sums(row);
  for (int y = 0; y < out_h_; ++y) {
    const auto [first, count] = rows_.windows[y];
    const int32_t* weights = &rows_.weights[static_cast<size_t>(y) * rows_.stride];
    std::fill(sums.begin(), sums.end(), kHalf);
    for (int k = 0; k < count; ++k) {
      const uint8_t* in = src + (first + k) * row;
      for (size_t i = 0; i < row; ++i) sums[i] += in[i] * weights[k];
    }
    for (size_t i = 0; i < row; ++i) *dst++ = round_to_byte(sums[i]);
  }
}

void Resizer::resize(const uint8_t* src, uint8_t* dst) const {
  if (w_ == out_w_ && h_ == out_h_) {
    std::memcpy(dst, src, static_cast<size_t>(h_) * w_ * channels_);
  } else if (h_ == out_h_) {
    horizontal(src, dst);
  } else if (w_ == out_w_) {
    vertical(src, dst);
  } else {
    std::vector<uint8_t> between(static_cast<size_t>(h_) * out_w_ * channels_);
    horizontal(src, between.data());
    vertical(between.data(), dst);
  }
}

void resize_bilinear(const uint8_t* src, int h, int w, int channels, int out_h, int out_w,
                     uint8_t* dst) {
  Resizer(h, w, channels, out_h, out_w).resize(src, dst);
}

}  // namespace tessera
