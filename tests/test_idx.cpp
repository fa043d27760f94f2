// IDX files raw and gzipped, and every way in which they can lie about themselves.
#include "apps/idx.h"

#include <catch2/catch.hpp>

#include "core/check.h"
#include "tests/idx_files.h"
#include "tests/temp_dir.h"

using namespace tessera;

namespace {

const std::string kPixels("\x00\x01\x02\x03\x04\x05\xfa\xfb\xfc\xfd\xfe\xff", 12);

// What reading it says; "" if it is accepted.
std::string refusal(const std::string& file) {
  return message_of<InputError>([&] { parse_idx(bytes_of(file), "f"); });
}

}  // namespace

TEST_CASE("idx: raw and gzipped files give their images", "[idx]") {
  TempDir dir;
  const std::string raw = idx_file(2, 2, 3, kPixels);
  write_text(dir / "raw.gz", raw);  // the content decides, not the name
  write_text(dir / "zipped", gzip(raw));
  for (const char* name : {"raw.gz", "zipped"}) {
    CAPTURE(name);
    const IdxImages images = read_idx(dir / name);
    CHECK(images.n == 2);
    CHECK(images.h == 2);
    CHECK(images.w == 3);
    CHECK(std::string(images.pixels.begin(), images.pixels.end()) == kPixels);
  }
}

TEST_CASE("idx: no images is a legal file", "[idx]") {
  CHECK(parse_idx(bytes_of(idx_file(0, 28, 28, "")), "f").pixels.empty());
  CHECK(parse_idx(bytes_of(gzip(idx_file(0, 28, 28, ""))), "f").pixels.empty());
}

TEST_CASE("idx: files that are something else", "[idx]") {
  const std::string message = "f: not an IDX3 file of unsigned bytes: it begins with ";
  CHECK(refusal("") == message + "0 bytes, expected 0x00000803");
  CHECK(refusal(std::string("\0\0\x08\x01\0\0\0\0", 8)) ==
        message + "0x00000801, expected 0x00000803");
  CHECK(refusal("PNG?") == message + "0x504e473f, expected 0x00000803");
  CHECK(refusal(gzip("")) == message + "0 bytes, expected 0x00000803");
  CHECK(refusal(gzip("text")) == message + "0x74657874, expected 0x00000803");
}

TEST_CASE("idx: sides of no or too many pixels", "[idx]") {
  CHECK(refusal(idx_file(1, 0, 28, "")) == "f: images of 0x28, expected sides from 1 to 65535");
  CHECK(refusal(idx_file(1, 28, 65536, "")) ==
        "f: images of 28x65536, expected sides from 1 to 65535");
}

TEST_CASE("idx: a raw file cut or extended anywhere is refused", "[idx]") {
  const std::string file = idx_file(2, 2, 3, kPixels);
  for (size_t length = 0; length < file.size(); ++length) {
    CAPTURE(length);
    CHECK_FALSE(refusal(file.substr(0, length)).empty());
  }
  CHECK(refusal(file.substr(0, 10)) == "f: truncated: header of 16 bytes, 10 are there");
  CHECK(refusal(file.substr(0, 27)) ==
        "f: 2 images of 2x3 need 12 bytes of pixels, the file has 11");
  CHECK(refusal(file + "x") == "f: 2 images of 2x3 need 12 bytes of pixels, the file has 13");
  CHECK(refusal(idx_file(0xffffffff, 65535, 65535, kPixels)) ==
        "f: 4294967295 images of 65535x65535 need 18446181123756261375 bytes of pixels, the file "
        "has 12");
}

TEST_CASE("idx: a gzipped file cut or extended anywhere is refused", "[idx]") {
  const std::string file = gzip(idx_file(2, 2, 3, kPixels));
  for (size_t length = 0; length < file.size(); ++length) {
    CAPTURE(length);
    CHECK_FALSE(refusal(file.substr(0, length)).empty());
  }
  CHECK(refusal(file).empty());
  CHECK(refusal(file.substr(0, file.size() - 1)) == "f: truncated gzip file");
  CHECK(refusal(file + "xyz") == "f: 3 bytes behind the end of the gzip data");
}

TEST_CASE("idx: gzipped data shorter or longer than the header says", "[idx]") {
  CHECK(refusal(gzip(idx_file(2, 2, 3, kPixels.substr(1)))) ==
        "f: 2 images of 2x3 need 12 bytes of pixels, the file has 11");
  CHECK(refusal(gzip(idx_file(2, 2, 3, kPixels + "x"))) ==
        "f: 2 images of 2x3 need 12 bytes of pixels, the file has more");
  const std::string bomb = gzip(idx_file(1, 1, 1, std::string(50'000'000, '\0')));
  CHECK(refusal(bomb) == "f: 1 images of 1x1 need 1 bytes of pixels, the file has more");
}

TEST_CASE("idx: no memory is taken for more than the gzipped file can hold", "[idx]") {
  const std::string file = gzip(idx_file(0xffffffff, 65535, 65535, kPixels));
  CHECK(refusal(file) ==
        "f: 4294967295 images of 65535x65535 need 18446181123756261375 bytes of pixels, which " +
            std::to_string(file.size()) + " gzipped bytes cannot hold");
}

TEST_CASE("idx: damaged gzip data", "[idx]") {
  std::string file = gzip(idx_file(2, 2, 3, kPixels));
  std::string wrong_sum = file;
  wrong_sum[file.size() - 8] ^= 1;
  CHECK(refusal(wrong_sum) == "f: corrupt gzip file: incorrect data check");
  std::string wrong_method = file;
  wrong_method[2] = 7;
  CHECK(refusal(wrong_method) == "f: corrupt gzip file: unknown compression method");
}

TEST_CASE("idx: a file that cannot be read names itself", "[idx]") {
  TempDir dir;
  CHECK(message_of<InputError>([&] { read_idx(dir / "no"); }) ==
        "cannot read " + (dir / "no").string() + ": No such file or directory");
  CHECK(message_of<InputError>([&] { read_idx(dir.path()); }) ==
        "cannot read " + dir.path().string() + ": Is a directory");
}
