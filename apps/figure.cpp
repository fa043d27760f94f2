// Lays out rows of equal square cells under their titles:
//   margin | title | gap | cell gap cell ... | margin, and so on downwards.
#include "apps/figure.h"

#include <algorithm>

#include "apps/font.h"
#include "apps/image.h"
#include "core/check.h"

namespace tessera {
namespace {

constexpr int kSmallestCell = 96;  // pixels a side
constexpr int kGap = 8;            // between images, and between a title and its images
constexpr int kMargin = 20;        // around the figure, and above a title
constexpr int kTextScale = 2;      // pixels of the figure to one of the font
constexpr int kTitleHeight = kGlyphHeight * kTextScale;

// Columns from the first to the last with ink, for proportional spacing.
struct GlyphShape {
  const Glyph& glyph;
  int first, width;
};

GlyphShape shape_of(char c) {
  if (c < kFirstGlyph || c > kLastGlyph) c = '?';
  const Glyph& glyph = kFont[c - kFirstGlyph];
  unsigned ink = 0;
  for (const uint8_t row : glyph) ink |= row;
  constexpr int kSpaceWidth = 3;
  if (ink == 0) return {glyph, 0, kSpaceWidth};
  int first = 0, last = kGlyphWidth - 1;
  while (!(ink >> (kGlyphWidth - 1 - first) & 1)) ++first;
  while (!(ink >> (kGlyphWidth - 1 - last) & 1)) --last;
  return {glyph, first, last - first + 1};
}

// In pixels of the figure.
int text_width(const std::string& text) {
  int width = 0;
  for (const char c : text) width += (shape_of(c).width + 1) * kTextScale;
  return std::max(width - kTextScale, 0);  // no space behind the last
}

// A white image to draw on.
class Canvas {
 public:
  Canvas(int width, int height, int channels)
      : image_{width, height, channels,
               std::vector<uint8_t>(static_cast<size_t>(width) * height * channels, 255)} {}

  // Fills a square of `side` pixels with one colour of as many values as the image has channels.
  void fill(int x, int y, int side, const uint8_t* colour) {
    for (int row = y; row < y + side; ++row) {
      uint8_t* out = &image_.pixels[(static_cast<size_t>(row) * image_.width + x) * channels()];
      for (int i = 0; i < side; ++i) out = std::copy_n(colour, channels(), out);
    }
  }

  void draw_text(int x, int y, const std::string& text) {
    constexpr uint8_t kBlack[3] = {0, 0, 0};
    for (const char c : text) {
      const GlyphShape shape = shape_of(c);
      for (int row = 0; row < kGlyphHeight; ++row) {
        for (int column = 0; column < shape.width; ++column) {
          const int bit = kGlyphWidth - 1 - shape.first - column;
          if (!(shape.glyph[row] >> bit & 1)) continue;
          fill(x + column * kTextScale, y + row * kTextScale, kTextScale, kBlack);
        }
      }
      x += (shape.width + 1) * kTextScale;
    }
  }

  // values: [size, size, channels] in [-1, 1], each drawn as scale x scale pixels.
  void draw_image(int x, int y, const std::vector<float>& values, int size, int scale) {
    const float* in = values.data();
    for (int row = 0; row < size; ++row) {
      for (int column = 0; column < size; ++column) {
        uint8_t colour[3];
        for (int c = 0; c < channels(); ++c) colour[c] = to_byte(*in++);
        fill(x + column * scale, y + row * scale, scale, colour);
      }
    }
  }

  const Image& image() const { return image_; }

 private:
  int channels() const { return image_.channels; }

  Image image_;
};

}  // namespace

void write_figure(const std::filesystem::path& path, const std::vector<FigureRow>& rows, int size,
                  int channels) {
  ENSURE(!rows.empty() && size > 0 && (channels == 1 || channels == 3), rows.size(), " rows of ",
         size, "x", size, "x", channels);
  const int scale = (kSmallestCell + size - 1) / size;
  const int cell = size * scale, step = cell + kGap;
  const auto row_width = [&](const FigureRow& row) {
    return std::max(static_cast<int>(row.images.size()) * step - kGap, 0);
  };
  int content = 0;
  for (const FigureRow& row : rows) {
    content = std::max({content, row_width(row), text_width(row.title)});
    for (const auto& image : row.images) {
      ENSURE(image.size() == static_cast<size_t>(size) * size * channels, row.title, ": ",
             image.size(), " values");
    }
  }

  const int row_height = kMargin + kTitleHeight + kGap + cell;
  Canvas canvas(content + 2 * kMargin, static_cast<int>(rows.size()) * row_height + kMargin,
                channels);
  int y = kMargin;
  for (const FigureRow& row : rows) {
    canvas.draw_text(kMargin + (content - text_width(row.title)) / 2, y, row.title);
    int x = kMargin + (content - row_width(row)) / 2;
    for (const auto& image : row.images) {
      canvas.draw_image(x, y + kTitleHeight + kGap, image, size, scale);
      x += step;
    }
    y += row_height;
  }
  write_png(path, canvas.image());
}

}  // namespace tessera
