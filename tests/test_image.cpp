// Every PNG and JPEG form against Pillow's bytes (made by tests/golden/make_images.py), PNG out,
// and damaged files.
#include "apps/image.h"

#include <catch2/catch.hpp>
#include <cstring>
#include <limits>

#include "core/check.h"
#include "core/safetensors.h"
#include "tests/paths.h"
#include "tests/temp_dir.h"

using namespace tessera;
namespace fs = std::filesystem;

namespace {

const fs::path kFolder = fs::path(test_dir()) / "golden" / "images";
const fs::path kFuzzSeeds = fs::path(test_dir()) / "fuzz" / "seeds";

std::vector<fs::path> samples() {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(kFolder)) {
    if (entry.path().extension() != ".safetensors") paths.push_back(entry.path());
  }
  return paths;
}

// What reading it says; "" if it is accepted.
std::string refusal(const std::string& file) {
  return message_of<InputError>([&] { parse_image(bytes_of(file), 1, "f"); });
}

// A PNG's signature and IHDR chunk, its checksum set right only for the sizes tested with it.
std::string png_start(uint32_t width, uint32_t height) {
  std::string start = read_text(kFolder / "grey8.png").substr(0, 33);
  for (int i = 0; i < 4; ++i) {
    start[16 + i] = static_cast<char>(width >> (24 - 8 * i));
    start[20 + i] = static_cast<char>(height >> (24 - 8 * i));
  }
  return start;
}

}  // namespace

TEST_CASE("image: numbers from -1 to 1 become bytes, others are clamped", "[image]") {
  for (int byte = 0; byte < 256; ++byte) CHECK(to_byte((float(byte) / 255 - 0.5f) / 0.5f) == byte);
  const float inf = std::numeric_limits<float>::infinity();
  for (float low : {-1.0f, -1.5f, -inf, std::numeric_limits<float>::quiet_NaN()})
    CHECK(to_byte(low) == 0);
  for (float high : {1.0f, 1.5f, inf}) CHECK(to_byte(high) == 255);
  CHECK(to_byte(0.498f / 127.5f - 1) == 0);
  CHECK(to_byte(0.502f / 127.5f - 1) == 1);
}

TEST_CASE("image: every form gives Pillow's bytes", "[image]") {
  const SafeTensors expected = SafeTensors::read(kFolder / "expected.safetensors");
  REQUIRE(samples().size() == 38);
  for (const fs::path& path : samples()) {
    CAPTURE(path);
    for (const int channels : {1, 3}) {
      const Image image = read_image(path, channels);
      const SafeTensor& tensor =
          expected.at(path.filename().string() + (channels == 1 ? ".L" : ".RGB"));
      std::vector<int64_t> shape = {image.height, image.width};
      if (channels == 3) shape.push_back(3);
      CHECK(image.channels == channels);
      REQUIRE(shape == tensor.shape);
      REQUIRE(image.pixels.size() == tensor.data.size());
      CHECK(std::memcmp(image.pixels.data(), tensor.data.data(), tensor.data.size()) == 0);
    }
  }
}

TEST_CASE("image: a file cut at any length is refused", "[image]") {
  for (const char* name : {"grey8.png", "rgba16_interlaced.png", "palette8_trns.png", "grey.jpg",
                           "rgb_420.jpg", "rgb_progressive.jpg", "cmyk.jpg"}) {
    const std::string file = read_text(kFolder / name);
    for (size_t length = 0; length < file.size(); ++length) {
      CAPTURE(name, length);
      CHECK_FALSE(refusal(file.substr(0, length)).empty());
    }
  }
}

TEST_CASE("image: truncated files say so", "[image]") {
  const std::string png = read_text(kFolder / "grey8.png"), jpeg = read_text(kFolder / "grey.jpg");
  CHECK(refusal(png.substr(0, 20)) == "f: not a valid PNG image: file is truncated");
  CHECK(refusal(png.substr(0, png.size() - 1)) == "f: not a valid PNG image: file is truncated");
  CHECK(refusal(jpeg.substr(0, jpeg.size() - 2)) ==
        "f: not a valid JPEG image: Premature end of JPEG file");
}

TEST_CASE("image: damaged files are refused", "[image]") {
  std::string png = read_text(kFolder / "rgb8.png");
  png[png.size() - 13] ^= 1;  // the data's checksum, before the 12 bytes of the end chunk
  CHECK(refusal(png) == "f: not a valid PNG image: IDAT: CRC error");
  png[png.size() / 2] ^= 1;
  CHECK(refusal(png) == "f: not a valid PNG image: IDAT: incorrect data check");
  std::string jpeg = read_text(kFolder / "rgb_444.jpg");
  jpeg.erase(jpeg.size() - 400, 300);  // libjpeg by itself would paint the rest grey
  CHECK(refusal(jpeg) ==
        "f: not a valid JPEG image: Corrupt JPEG data: premature end of data segment");
}

TEST_CASE("image: other files are refused", "[image]") {
  const std::string message = "f: neither a PNG nor a JPEG image";
  CHECK(refusal("") == message);
  CHECK(refusal("GIF89a") == message);
  CHECK(refusal("\x89PNG") == message);
}

TEST_CASE("image: sizes are refused before memory is taken", "[image]") {
  const std::string limits = ", expected sides from 1 to 65535 and at most 268435456 pixels";
  CHECK(refusal(png_start(65536, 1)) == "f: image of 65536x1" + limits);
  CHECK(refusal(png_start(0, 1)) == "f: image of 0x1" + limits);
  CHECK(refusal(png_start(0xffffffff, 0xffffffff)) == "f: image of 4294967295x4294967295" + limits);
  CHECK(refusal(png_start(16385, 16384)) == "f: image of 16385x16384" + limits);

  std::string jpeg = read_text(kFolder / "grey.jpg");
  const size_t frame = jpeg.find("\xff\xc0");  // marker, length (2), precision (1), height, width
  REQUIRE(frame != std::string::npos);
  jpeg.replace(frame + 5, 4, "\xff\xdc\xff\xdc");  // the most that libjpeg takes
  CHECK(refusal(jpeg) == "f: image of 65500x65500" + limits);
  jpeg.replace(frame + 5, 4, "\x40\x01\x3f\xff");
  CHECK(refusal(jpeg) == "f: not a valid JPEG image: 16383x16385 pixels are too many for " +
                             std::to_string(jpeg.size()) + " bytes");

  std::string arithmetic = read_text(kFuzzSeeds / "jpeg" / "grey_arithmetic.jpg");
  CHECK(refusal(arithmetic).empty());
  arithmetic.replace(arithmetic.find("\xff\xc9") + 5, 4, "\x40\x01\x3f\xff");
  CHECK(refusal(arithmetic) == "f: not a valid JPEG image: 16383x16385 pixels are too many for " +
                                   std::to_string(arithmetic.size()) + " bytes");
}

TEST_CASE("image: a PNG that cannot hold its pixels is refused", "[image]") {
  // 16384x16384, checksum corrected, then the data of an 11x7 image.
  std::string png = png_start(16384, 16384);
  png.replace(29, 4, "\x8c\xa3\x4f\x58");
  png += read_text(kFolder / "grey8.png").substr(33);
  CHECK(refusal(png) == "f: not a valid PNG image: 16384x16384 pixels cannot be in " +
                            std::to_string(png.size()) + " bytes");
}

TEST_CASE("image: a JPEG of two components is refused", "[image]") {
  std::string jpeg = read_text(kFolder / "rgb_444.jpg");
  const size_t frame = jpeg.find("\xff\xc0");
  jpeg.replace(frame + 2, 8, std::string("\0\x0e\x08\0\x1d\0\x25\x02", 8));
  jpeg.erase(frame + 2 + 14, 3);
  const size_t scan = jpeg.find("\xff\xda");
  jpeg.replace(scan + 2, 3, std::string("\0\x0a\x02", 3));
  jpeg.erase(scan + 2 + 7, 2);
  CHECK(refusal(jpeg) == "f: JPEG image of 2 components, expected 1, 3 or 4");
}

TEST_CASE("image: a file that cannot be read names itself", "[image]") {
  TempDir dir;
  CHECK(message_of<InputError>([&] { read_image(dir / "no.png", 1); }) ==
        "cannot read " + (dir / "no.png").string() + ": No such file or directory");
  write_text(dir / "text.png", "no picture");
  CHECK(message_of<InputError>([&] { read_image(dir / "text.png", 1); }) ==
        (dir / "text.png").string() + ": neither a PNG nor a JPEG image");
}

TEST_CASE("image: write_png gives back the same pixels", "[image]") {
  TempDir dir;
  for (const int channels : {1, 3}) {
    Image image{5, 3, channels, {}};
    for (int i = 0; i < 5 * 3 * channels; ++i) {
      image.pixels.push_back(static_cast<uint8_t>(i * 37 + 200));
    }
    write_png(dir / "a.png", image);
    const Image read = read_image(dir / "a.png", channels);
    CHECK(read.width == 5);
    CHECK(read.height == 3);
    CHECK(read.pixels == image.pixels);
    CHECK(read_text(dir / "a.png")[25] == (channels == 1 ? 0 : 2));  // PNG's colour type
  }
}

TEST_CASE("image: write_png checks its image and names the file", "[image]") {
  TempDir dir;
  CHECK_THROWS_AS(write_png(dir / "a.png", {2, 2, 1, {1, 2, 3}}), Error);
  CHECK_THROWS_AS(write_png(dir / "a.png", {1, 1, 2, {1, 2}}), Error);
  CHECK_FALSE(fs::exists(dir / "a.png"));
  CHECK(message_of<InputError>([&] {
          write_png(dir / "no" / "a.png", {1, 1, 1, {0}});
        }) == "cannot write " + (dir / "no" / "a.png").string() + ": No such file or directory");
}

TEST_CASE("the widest image", "[image]") {
  TempDir dir;
  const Image wide{65535, 1, 1, std::vector<uint8_t>(65535, 7)};
  write_png(dir / "wide.png", wide);
  CHECK(read_image(dir / "wide.png", 1).pixels == wide.pixels);
}

TEST_CASE("a damaged text chunk is refused, stray bytes between segments are not", "[image]") {
  const fs::path folder = fs::path(test_dir()) / "golden" / "images";
  const auto parse = [](const std::string& s) { return parse_image(bytes_of(s), 1, "f"); };
  std::string png = read_text(folder / "grey8.png");
  std::string chunk("\0\0\0\3tEXta\0b\1\2\3\4", 15);
  CHECK_THAT(message_of<InputError>([&] { parse(std::string(png).insert(33, chunk)); }),
             Catch::Contains("CRC"));
  const std::string jpeg = read_text(folder / "grey.jpg");
  const size_t at = jpeg.find("\xff\xda");
  REQUIRE(at != std::string::npos);
  std::string stray = jpeg;
  stray.insert(at, std::string("\0\0\0", 3));
  CHECK(message_of<InputError>([&] { CHECK(parse(stray).pixels == parse(jpeg).pixels); }) == "");
}
