// PNG through libpng. Every form becomes 8-bit grey or RGB as in Pillow: palettes and few bits are
// expanded, alpha and transparent colours dropped, gamma and profiles ignored; of 16 bits the upper
// 8 are kept, except that plain 16-bit grey is clipped to 255. What is written says that it is
// sRGB. While it reads, libpng reports errors by longjmp. So that no C++ object is jumped over,
// each function with a setjmp has none of its own: they live in the reader that its caller holds.
#include <png.h>

#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <vector>

#include "apps/image_codec.h"
#include "core/check.h"
#include "core/file.h"

namespace tessera {
namespace {

constexpr uint64_t kMaxDeflateRatio = 1032;  // a match of 258 bytes in two bits

// What libpng's callbacks need: they are handed a pointer to it.
struct Transfer {
  char message[128] = "";
  std::span<const std::byte> input;  // still to be read
};

[[noreturn]] void on_error(png_structp png, png_const_charp text) {
  auto* transfer = static_cast<Transfer*>(png_get_error_ptr(png));
  std::snprintf(transfer->message, sizeof transfer->message, "%s", text);
  png_longjmp(png, 1);
}

void on_warning(png_structp, png_const_charp) {}

void on_read(png_structp png, png_bytep out, size_t bytes) {
  auto* transfer = static_cast<Transfer*>(png_get_io_ptr(png));
  if (transfer->input.size() < bytes) png_error(png, "file is truncated");
  std::memcpy(out, transfer->input.data(), bytes);
  transfer->input = transfer->input.subspan(bytes);
}

struct Reader {
  Transfer transfer;
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &transfer, on_error, on_warning);
  png_infop info = png ? png_create_info_struct(png) : nullptr;
  std::vector<png_byte> samples;  // rows as libpng gives them
  std::vector<png_bytep> rows;

  Reader() { ENSURE(info != nullptr, "libpng does not start"); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }
};

bool is_grey16(const Reader& reader) {
  return png_get_color_type(reader.png, reader.info) == PNG_COLOR_TYPE_GRAY &&
         png_get_bit_depth(reader.png, reader.info) == 16;
}

// Reads all before the pixels and sets what becomes of them. False: transfer.message says why.
bool read_header(Reader& reader) {
  if (setjmp(png_jmpbuf(reader.png))) return false;
  png_set_read_fn(reader.png, &reader.transfer, on_read);
  png_set_crc_action(reader.png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
  png_read_info(reader.png, reader.info);
  if (png_get_color_type(reader.png, reader.info) == PNG_COLOR_TYPE_PALETTE) {
    png_set_palette_to_rgb(reader.png);
  }
  png_set_expand_gray_1_2_4_to_8(reader.png);
  if (!is_grey16(reader)) png_set_strip_16(reader.png);
  png_set_strip_alpha(reader.png);
  png_set_interlace_handling(reader.png);
  png_read_update_info(reader.png, reader.info);
  return true;
}

// Reads the pixels into reader.rows, and on to the end of the file.
bool read_rows(Reader& reader) {
  if (setjmp(png_jmpbuf(reader.png))) return false;
  png_read_image(reader.png, reader.rows.data());
  png_read_end(reader.png, nullptr);
  return true;
}

[[noreturn]] void fail(const Reader& reader, const std::string& origin) {
  throw InputError(concat(origin, ": not a valid PNG image: ", reader.transfer.message));
}

uint32_t big_endian(std::span<const std::byte> bytes) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value = value << 8 | std::to_integer<uint32_t>(bytes[i]);
  return value;
}

// Samples of 16 bits, big-endian, to 8. Pillow clips here, where elsewhere it shifts.
void clip_to_bytes(std::vector<uint8_t>& samples) {
  for (size_t i = 0; i < samples.size() / 2; ++i) {
    samples[i] = samples[2 * i] != 0 ? 255 : samples[2 * i + 1];
  }
  samples.resize(samples.size() / 2);
}

}  // namespace

Image decode_png(std::span<const std::byte> content, const std::string& origin) {
  // Width and height come first of all chunks, so they are seen before libpng takes memory.
  constexpr size_t kWidthAt = 16, kHeightAt = 20, kSizeEnd = 24;
  Reader reader;
  reader.transfer.input = content;
  if (content.size() < kSizeEnd) {
    throw InputError(origin + ": not a valid PNG image: file is truncated");
  }
  check_image_size(big_endian(content.subspan(kWidthAt)), big_endian(content.subspan(kHeightAt)),
                   origin);
  if (!read_header(reader)) fail(reader, origin);

  Image image;
  image.width = static_cast<int>(png_get_image_width(reader.png, reader.info));
  image.height = static_cast<int>(png_get_image_height(reader.png, reader.info));
  image.channels = png_get_channels(reader.png, reader.info);
  // At least one bit a pixel was compressed; more than the file can hold is not worth the memory.
  const uint64_t least_bytes = static_cast<uint64_t>(image.width) * image.height / 8;
  if (least_bytes / kMaxDeflateRatio > content.size()) {
    throw InputError(concat(origin, ": not a valid PNG image: ", image.width, "x", image.height,
                            " pixels cannot be in ", content.size(), " bytes"));
  }
  const size_t row_bytes = png_get_rowbytes(reader.png, reader.info);
  reader.samples.resize(row_bytes * image.height);
  for (int y = 0; y < image.height; ++y) {
    reader.rows.push_back(reader.samples.data() + y * row_bytes);
  }
  if (!read_rows(reader)) fail(reader, origin);
  image.pixels = std::move(reader.samples);
  if (is_grey16(reader)) clip_to_bytes(image.pixels);
  return image;
}

void write_png(const std::filesystem::path& path, const Image& image) {
  ENSURE(
      image.width > 0 && image.height > 0 && (image.channels == 1 || image.channels == 3) &&
          image.pixels.size() == static_cast<size_t>(image.width) * image.height * image.channels,
      image.width, "x", image.height, "x", image.channels, ", ", image.pixels.size(), " bytes");
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  png.width = image.width, png.height = image.height;
  png.format = image.channels == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
  png_alloc_size_t bytes = PNG_IMAGE_PNG_SIZE_MAX(png);
  std::vector<std::byte> file(bytes);
  if (!png_image_write_to_memory(&png, file.data(), &bytes, 0, image.pixels.data(), 0, nullptr))
    throw InputError(concat("cannot write ", path.string(), ": ", png.message));
  atomic_write(path, [&](FileWriter& out) { out.write(file.data(), bytes); });
}

}  // namespace tessera
