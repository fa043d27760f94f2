// Bilinear resizing of 8-bit images, bit-equal to Pillow's Image.resize(size, BILINEAR).
#pragma once

#include <cstdint>
#include <vector>

namespace tessera {

// Resizes images of one size to another; the weights are computed once.
class Resizer {
 public:
  // All sizes at least 1.
  Resizer(int h, int w, int channels, int out_h, int out_w);

  // src: [h, w, channels], dst: [out_h, out_w, channels]. Thread-safe.
  void resize(const uint8_t* src, uint8_t* dst) const;

 private:
  // For each output position along one side: the inputs it sums and their fixed-point weights.
  struct Taps {
    struct Window {
      int first, count;
    };
    std::vector<Window> windows;   // one an output
    std::vector<int32_t> weights;  // [outputs, stride]
    int stride = 0;
  };
  static Taps make_taps(int in, int out);
  void horizontal(const uint8_t* src, uint8_t* dst) const;
  void vertical(const uint8_t* src, uint8_t* dst) const;

  int h_, w_, channels_, out_h_, out_w_;
  Taps columns_, rows_;
};

// The same for a single image.
void resize_bilinear(const uint8_t* src, int h, int w, int channels, int out_h, int out_w,
                     uint8_t* dst);

}  // namespace tessera
