// Pictures in files: PNG and JPEG in, PNG out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace tessera {

struct Image {
  int width = 0, height = 0, channels = 0;  // 1: grey, 3: RGB
  std::vector<uint8_t> pixels;              // [height, width, channels]
};

// [-1, 1] to 0..255, clamped and rounded; NaN becomes 0.
uint8_t to_byte(float value);

// Reads a PNG or JPEG, told apart by content, with the values of Pillow's
// Image.open(path).convert(channels == 1 ? "L" : "RGB"). Every error is an InputError naming the
// file; so are more than 2^28 pixels, and data that is cut short or corrupt.
Image read_image(const std::filesystem::path& path, int channels);

// The same from memory. `origin` stands for the file in errors.
Image parse_image(std::span<const std::byte> content, int channels, const std::string& origin);

// Replaces `path` atomically by an 8-bit PNG.
void write_png(const std::filesystem::path& path, const Image& image);

}  // namespace tessera
