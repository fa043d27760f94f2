// A figure of images in titled rows, such as Original, Noisy, Denoised, written as PNG.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace tessera {

struct FigureRow {
  std::string title;                       // printable ASCII; other bytes are drawn as '?'
  std::vector<std::vector<float>> images;  // each [size, size, channels] in [-1, 1]
};

// Draws value * 0.5 + 0.5, clamped to [0, 1] (NaN is black), on white, a title centred above each
// row. Small images are enlarged by a whole factor. channels: 1 or 3. Replaces `path` atomically.
void write_figure(const std::filesystem::path& path, const std::vector<FigureRow>& rows, int size,
                  int channels);

}  // namespace tessera
