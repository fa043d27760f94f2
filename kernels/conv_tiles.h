// Which tile of pixels and channels a block of the 3x3 convolutions in bf16 computes
// (cuda/conv_halo.h): a rule, and a table of exceptions by GPU architecture and shape, which
// `bench --tune` measures and writes. A tile never changes how an output is summed, but the sums
// that it takes for a GroupNorm are grouped by tiles: with another table these may have other last
// bits.
#pragma once

#include <compare>
#include <map>
#include <string>

#include "core/device.h"

namespace tessera {

enum class ConvTile { k16x16x64, k8x16x128, k2x8x8x128, k2x8x8x64, k8x8x64 };

// height x width pixels of some images, by channels of the output.
struct ConvTileSize {
  ConvTile tile;
  const char* name;
  int images, height, width, channels;
};
inline constexpr ConvTileSize kConvTiles[] = {{ConvTile::k16x16x64, "16x16x64", 1, 16, 16, 64},
                                              {ConvTile::k8x16x128, "8x16x128", 1, 8, 16, 128},
                                              {ConvTile::k2x8x8x128, "2x8x8x128", 2, 8, 8, 128},
                                              {ConvTile::k2x8x8x64, "2x8x8x64", 2, 8, 8, 64},
                                              {ConvTile::k8x8x64, "8x8x64", 1, 8, 8, 64}};
inline const ConvTileSize& size_of(ConvTile tile) { return kConvTiles[int(tile)]; }

// A convolution, or the gradient of its data, which is one, too. columns: channels of what is
// computed, depth: channels of what is read. N images of H x W pixels.
struct ConvShape {
  bool data_gradient = false;
  int64_t N = 0, H = 0, W = 0, columns = 0, depth = 0;
  auto operator<=>(const ConvShape&) const = default;
};
// "fwd 32 64 64 64 192"
std::string text_of(const ConvShape& shape);

// Blocks that keep a large GPU busy, whichever is at hand.
inline constexpr int64_t kEnoughConvBlocks = 96;
int64_t blocks_of(ConvTile tile, const ConvShape& shape);
// "" when it is worth trying; else what would be computed in vain.
std::string misfit_of(ConvTile tile, const ConvShape& shape);
// What is chosen for a shape that no table has.
ConvTile default_tile(const ConvShape& shape);

// The exceptions. As a text file: a line for each,
//   architecture fwd|dgrad N H W columns depth tile        90 fwd 32 64 64 64 192 8x8x64
// (architecture of the code that runs: 10 * major + minor); # begins a comment.
class ConvTiles {
 public:
  ConvTiles() = default;
  // Those in force: the one T of a Stream (Stream::state), which may be changed.
  explicit ConvTiles(Stream&) : ConvTiles(in_force()) {}

  // Throws InputError, which names file, line and what was expected.
  static ConvTiles read(const std::string& path);
  // Read once in a process: the file that the environment variable TESSERA_TILES names, else
  // tiles.txt beside the program if there is one. None when the variable is empty. Throws as read()
  // does.
  static const ConvTiles& in_force();
  static std::string default_file();

  void set(int architecture, const ConvShape& shape, ConvTile tile);
  // The tile for a shape, by the table or by the rule.
  ConvTile choose(int architecture, const ConvShape& shape) const;

  const std::string& file() const { return file_; }  // "" when there is none
  size_t count() const { return tiles_.size(); }
  bool has(int architecture, const ConvShape& shape) const;

 private:
  struct Key {
    int architecture;
    ConvShape shape;
    auto operator<=>(const Key&) const = default;
  };
  void add_line(const std::string& line, std::map<Key, int>& seen, int number);

  std::string file_;
  std::map<Key, ConvTile> tiles_;
};

}  // namespace tessera
