// What image.cpp and the two decoders share. Not for others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "apps/image.h"

namespace tessera {

// Refuses an image with no pixels, a side over 65,535 or more than 2^28 pixels.
void check_image_size(uint64_t width, uint64_t height, const std::string& origin);

// Decode to as many channels as the file has colour: 1 or 3.
Image decode_png(std::span<const std::byte> content, const std::string& origin);
Image decode_jpeg(std::span<const std::byte> content, const std::string& origin);

}  // namespace tessera
