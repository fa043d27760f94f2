// Chooses the decoder by the file's first bytes and converts between grey and RGB as Pillow does:
// grey is ITU-R 601 luma in 16-bit fixed point.
#include "apps/image.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "apps/image_codec.h"
#include "core/check.h"
#include "core/file.h"

namespace tessera {
namespace {

constexpr uint64_t kMaxFileBytes = uint64_t{1} << 31;

bool begins_with(std::span<const std::byte> content, std::span<const uint8_t> magic) {
  return content.size() >= magic.size() &&
         std::equal(magic.begin(), magic.end(), content.begin(),
                    [](uint8_t a, std::byte b) { return std::byte{a} == b; });
}

Image to_grey(const Image& rgb) {
  Image grey{rgb.width, rgb.height, 1, std::vector<uint8_t>(rgb.pixels.size() / 3)};
  const uint8_t* in = rgb.pixels.data();
  for (uint8_t& out : grey.pixels) {
    out = static_cast<uint8_t>((in[0] * 19595 + in[1] * 38470 + in[2] * 7471 + 0x8000) >> 16);
    in += 3;
  }
  return grey;
}

Image to_rgb(const Image& grey) {
  Image rgb{grey.width, grey.height, 3, std::vector<uint8_t>(grey.pixels.size() * 3)};
  uint8_t* out = rgb.pixels.data();
  for (const uint8_t value : grey.pixels) out = std::fill_n(out, 3, value);
  return rgb;
}

}  // namespace

void check_image_size(uint64_t width, uint64_t height, const std::string& origin) {
  constexpr uint64_t kMaxSide = 65535, kMaxPixels = uint64_t{1} << 28;
  if (width == 0 || height == 0 || width > kMaxSide || height > kMaxSide ||
      width * height > kMaxPixels) {
    throw InputError(concat(origin, ": image of ", width, "x", height,
                            ", expected sides from 1 to ", kMaxSide, " and at most ", kMaxPixels,
                            " pixels"));
  }
}

uint8_t to_byte(float value) {
  const float unit = value * 0.5f + 0.5f;
  if (!(unit > 0)) return 0;  // NaN too
  return static_cast<uint8_t>(std::lround(std::min(unit, 1.0f) * 255));
}

Image read_image(const std::filesystem::path& path, int channels) {
  return parse_image(read_file(path, kMaxFileBytes), channels, path.string());
}

Image parse_image(std::span<const std::byte> content, int channels, const std::string& origin) {
  ENSURE(channels == 1 || channels == 3, "channels = ", channels);
  constexpr std::array<uint8_t, 8> kPng = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
  constexpr std::array<uint8_t, 3> kJpeg = {0xff, 0xd8, 0xff};
  Image image;
  if (begins_with(content, kPng)) {
    image = decode_png(content, origin);
  } else if (begins_with(content, kJpeg)) {
    image = decode_jpeg(content, origin);
  } else {
    throw InputError(origin + ": neither a PNG nor a JPEG image");
  }
  if (image.channels == channels) return image;
  return channels == 1 ? to_grey(image) : to_rgb(image);
}

}  // namespace tessera
