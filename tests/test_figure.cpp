// The figure's layout, values and titles, read back from its PNG.
#include "apps/figure.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <set>

#include "apps/font.h"
#include "apps/image.h"
#include "core/check.h"
#include "tests/temp_dir.h"

using namespace tessera;

namespace {

// Where the layout puts things: as in figure.cpp.
constexpr int kMargin = 20, kGap = 8, kTitle = 18;

struct Pixel {
  const Image& image;
  const uint8_t* at(int x, int y) const {
    return &image.pixels[(static_cast<size_t>(y) * image.width + x) * image.channels];
  }
};

// First and last column with ink in the rows [top, top + kTitle).
std::pair<int, int> ink_columns(const Image& image, int top) {
  int first = image.width, last = -1;
  for (int y = top; y < top + kTitle; ++y) {
    for (int x = 0; x < image.width; ++x) {
      if (*Pixel{image}.at(x, y) == 255) continue;
      first = std::min(first, x);
      last = std::max(last, x);
    }
  }
  return {first, last};
}

}  // namespace

TEST_CASE("figure: three rows by five columns, each image enlarged to at least 96 pixels",
          "[figure]") {
  TempDir dir;
  std::vector<FigureRow> rows = {{"Original", {}}, {"Noisy", {}}, {"Denoised", {}}};
  for (size_t r = 0; r < 3; ++r) {
    for (int c = 0; c < 5; ++c) {
      rows[r].images.emplace_back(32 * 32, static_cast<float>(5 * r + c) / 7.5f - 1);
    }
  }
  write_figure(dir / "f.png", rows, 32, 1);
  const Image image = read_image(dir / "f.png", 1);
  CHECK(image.width == 2 * kMargin + 5 * 96 + 4 * kGap);
  CHECK(image.height == 3 * (kMargin + kTitle + kGap + 96) + kMargin);
  for (int r = 0; r < 3; ++r) {
    const int top = kMargin + r * (kMargin + kTitle + kGap + 96);
    const auto [first, last] = ink_columns(image, top);
    CHECK(last > first);
    CHECK(std::abs(first - (image.width - 1 - last)) <= 2);  // centred
    for (int c = 0; c < 5; ++c) {
      const int x = kMargin + c * (96 + kGap), y = top + kTitle + kGap;
      const int expected = static_cast<int>(std::lround((5 * r + c) / 15.0 * 255));
      CAPTURE(r, c);
      CHECK(*Pixel{image}.at(x, y) == expected);
      CHECK(*Pixel{image}.at(x + 95, y + 95) == expected);
      CHECK(*Pixel{image}.at(x + 96, y) == 255);
      CHECK(*Pixel{image}.at(x, y + 96) == 255);
    }
  }
}

TEST_CASE("figure: values are clamped and NaN is black", "[figure]") {
  TempDir dir;
  const std::vector<float> values = {-3, 3, NAN, 0};
  write_figure(dir / "f.png", {{"", {values}}}, 2, 1);
  const Image image = read_image(dir / "f.png", 1);
  const int y = kMargin + kTitle + kGap;
  CHECK(*Pixel{image}.at(kMargin, y) == 0);
  CHECK(*Pixel{image}.at(kMargin + 48, y) == 255);
  CHECK(*Pixel{image}.at(kMargin, y + 48) == 0);
  CHECK(*Pixel{image}.at(kMargin + 47, y + 95) == 0);
  CHECK(*Pixel{image}.at(kMargin + 48, y + 48) == 128);
  CHECK(ink_columns(image, kMargin).second == -1);
}

TEST_CASE("figure: colour", "[figure]") {
  TempDir dir;
  std::vector<float> values;
  for (int i = 0; i < 100 * 100; ++i) values.insert(values.end(), {1, 0, -1});
  write_figure(dir / "f.png", {{"RGB", {values}}}, 100, 3);
  const Image image = read_image(dir / "f.png", 3);
  CHECK(image.width == 2 * kMargin + 100);
  const uint8_t* pixel = Pixel{image}.at(kMargin + 99, kMargin + kTitle + kGap + 99);
  CHECK(std::vector<int>(pixel, pixel + 3) == std::vector<int>{255, 128, 0});
}

TEST_CASE("figure: a title wider than its images widens the figure", "[figure]") {
  TempDir dir;
  const std::string title = "A long title for one image: (t = 500), \xc3\xa9";
  write_figure(dir / "f.png", {{title, {std::vector<float>(4, 1.0f)}}}, 2, 1);
  const Image image = read_image(dir / "f.png", 1);
  const auto [first, last] = ink_columns(image, kMargin);
  CHECK(first == kMargin);
  CHECK(last == image.width - 1 - kMargin);
  CHECK(last - first > 96);
}

TEST_CASE("figure: every printable character has its own glyph", "[figure]") {
  CHECK(std::set<Glyph>(kFont.begin(), kFont.end()).size() == kFont.size());
  for (const Glyph& glyph : kFont) {
    for (const uint8_t row : glyph) CHECK(row < 1 << kGlyphWidth);
  }
}

TEST_CASE("figure: wrong images are refused, errors name the file", "[figure]") {
  TempDir dir;
  CHECK_THROWS_AS(write_figure(dir / "f.png", {{"a", {{1, 2, 3}}}}, 2, 1), Error);
  CHECK_THROWS_AS(write_figure(dir / "f.png", {}, 2, 1), Error);
  CHECK_FALSE(std::filesystem::exists(dir / "f.png"));
  CHECK(message_of<InputError>([&] {
          write_figure(dir / "no" / "f.png", {{"a", {{1}}}}, 1, 1);
        }) == "cannot write " + (dir / "no" / "f.png").string() + ": No such file or directory");
}

TEST_CASE("sides are no less than 96 pixels, and short rows stand in the middle", "[figure]") {
  TempDir dir;
  // 100 pixels: no side of 96 is a multiple of 36, and a row of one image under a row of three.
  const std::vector<float> black(36 * 36, -1.0f);
  write_figure(dir / "f.png", {{"", {black, black, black}}, {"", {black}}}, 36, 1);
  const Image image = read_image(dir / "f.png", 1);
  CHECK(image.width == 2 * 20 + 3 * 108 + 2 * 8);
  const auto at = [&](int x, int y) { return int(image.pixels[size_t(y) * image.width + x]); };
  const int y = 20 + (20 + 18 + 8 + 108) + 18 + 8;
  CHECK(at(20 + 108 + 8 - 1, y) == 255);
  CHECK(at(20 + 108 + 8, y) == 0);
  CHECK(at(20 + 2 * 108 + 8 - 1, y) == 0);
  CHECK(at(20 + 2 * 108 + 8, y) == 255);
}
