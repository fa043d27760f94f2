// JPEG through libjpeg, to grey or RGB with the library's defaults (slow integer DCT, smooth
// upsampling), which are also Pillow's. Four components are CMYK, taken as inverted like Adobe's,
// and come to RGB by Pillow's formula (src/libImaging/Convert.c).
// libjpeg reports errors through a callback that must not return: it leaves by longjmp. So that no
// C++ object is jumped over, each function with a setjmp has none of its own.
#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <vector>

// After <cstdio>: they need FILE.
#include <jpeglib.h>
// After jpeglib.h.
#include <jerror.h>

#include "apps/image_codec.h"
#include "core/check.h"

namespace tessera {
namespace {

struct Reader {
  jpeg_error_mgr errors{};
  jpeg_decompress_struct info{};
  std::jmp_buf failed;
  char message[JMSG_LENGTH_MAX] = "";
  std::vector<uint8_t> samples;  // [height, width, components]

  Reader() = default;
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() { jpeg_destroy_decompress(&info); }
};

[[noreturn]] void on_error(j_common_ptr info) {
  auto* reader = static_cast<Reader*>(info->client_data);
  info->err->format_message(info, reader->message);
  std::longjmp(reader->failed, 1);
}

// Level -1 is damage that libjpeg would paint over in grey, a missing end for one: refused. Only
// stray bytes between markers, which some cameras write, do no harm.
void on_message(j_common_ptr info, int level) {
  if (level < 0 && info->err->msg_code != JWRN_EXTRANEOUS_DATA) on_error(info);
}

// False: message says why. So below.
bool read_header(Reader& reader, std::span<const std::byte> content) {
  reader.info.err = jpeg_std_error(&reader.errors);
  reader.errors.error_exit = on_error;
  reader.errors.emit_message = on_message;
  reader.info.client_data = &reader;
  if (setjmp(reader.failed)) return false;
  jpeg_create_decompress(&reader.info);
  jpeg_mem_src(&reader.info, reinterpret_cast<const unsigned char*>(content.data()),
               content.size());
  jpeg_read_header(&reader.info, TRUE);
  return true;
}

bool read_samples(Reader& reader) {
  if (setjmp(reader.failed)) return false;
  jpeg_start_decompress(&reader.info);
  const size_t row_bytes =
      static_cast<size_t>(reader.info.output_width) * reader.info.output_components;
  while (reader.info.output_scanline < reader.info.output_height) {
    JSAMPROW row = reader.samples.data() + reader.info.output_scanline * row_bytes;
    jpeg_read_scanlines(&reader.info, &row, 1);
  }
  jpeg_finish_decompress(&reader.info);
  return true;
}

[[noreturn]] void fail(const Reader& reader, const std::string& origin) {
  throw InputError(concat(origin, ": not a valid JPEG image: ", reader.message));
}

// Inverted CMYK to RGB: white minus the ink's share of it, with Pillow's rounding.
std::vector<uint8_t> cmyk_to_rgb(const std::vector<uint8_t>& cmyk) {
  std::vector<uint8_t> rgb;
  rgb.reserve(cmyk.size() / 4 * 3);
  for (size_t i = 0; i < cmyk.size(); i += 4) {
    const int white = cmyk[i + 3];
    for (int c = 0; c < 3; ++c) {
      const int product = (255 - cmyk[i + c]) * white + 128;
      rgb.push_back(static_cast<uint8_t>(white - (((product >> 8) + product) >> 8)));
    }
  }
  return rgb;
}

}  // namespace

Image decode_jpeg(std::span<const std::byte> content, const std::string& origin) {
  Reader reader;
  if (!read_header(reader, content)) fail(reader, origin);
  jpeg_decompress_struct& info = reader.info;
  check_image_size(info.image_width, info.image_height, origin);
  const int components = info.num_components;
  if (components != 1 && components != 3 && components != 4) {
    throw InputError(
        concat(origin, ": JPEG image of ", components, " components, expected 1, 3 or 4"));
  }
  // A Huffman code has at least one bit and a block covers at most 32x32 pixels (subsampled by 4):
  // more than that is not in the file and not worth the memory. Arithmetic coding may pack a plain
  // image tighter than this: a few bytes could ask for a gigabyte, which nobody's picture does.
  constexpr uint64_t kMaxPixelsPerByte = 32 * 32 * 8;
  const uint64_t pixels = uint64_t{info.image_width} * info.image_height;
  if (pixels / kMaxPixelsPerByte > content.size()) {
    throw InputError(concat(origin, ": not a valid JPEG image: ", info.image_width, "x",
                            info.image_height, " pixels are too many for ", content.size(),
                            " bytes"));
  }
  info.out_color_space = components == 1 ? JCS_GRAYSCALE : components == 3 ? JCS_RGB : JCS_CMYK;
  reader.samples.resize(static_cast<size_t>(info.image_width) * info.image_height * components);
  if (!read_samples(reader)) fail(reader, origin);

  Image image{static_cast<int>(info.image_width), static_cast<int>(info.image_height),
              std::min(components, 3), std::move(reader.samples)};
  if (components == 4) image.pixels = cmyk_to_rgb(image.pixels);
  return image;
}

}  // namespace tessera
