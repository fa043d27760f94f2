#include "kernels/conv_tiles.h"

#include <cstdlib>
#include <filesystem>
#include <vector>

#include "core/check.h"
#include "core/file.h"
#include "core/number.h"
#include "core/shape.h"

namespace tessera {
namespace {

constexpr uint64_t kMostBytes = 1 << 20;
constexpr const char* kFormat = "'architecture fwd|dgrad N H W columns depth tile'";

std::vector<std::string> words_of(const std::string& line) {
  std::istringstream in(line.substr(0, line.find('#')));
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

// A number of a line, and which.
int64_t number_of(const std::string& word, const char* name, int64_t least, int64_t unit = 1) {
  const auto value = number_in<int64_t>(word);
  if (!value || *value < least || *value > INT32_MAX || *value % unit != 0)
    throw InputError(concat(name, " is '", word, "', expected a number from ", least,
                            unit > 1 ? concat(" that ", unit, " divides") : ""));
  return *value;
}

ConvTile tile_of(const std::string& word) {
  std::string names;
  for (const ConvTileSize& size : kConvTiles) {
    if (word == size.name) return size.tile;
    names += concat(names.empty() ? "" : ", ", size.name);
  }
  throw InputError(concat("there is no tile '", word, "', expected one of ", names));
}

}  // namespace

std::string text_of(const ConvShape& s) {
  return concat(s.data_gradient ? "dgrad " : "fwd ", s.N, ' ', s.H, ' ', s.W, ' ', s.columns, ' ',
                s.depth);
}

int64_t blocks_of(ConvTile tile, const ConvShape& s) {
  const ConvTileSize& size = size_of(tile);
  return ceil_div(s.N, size.images) * ceil_div(s.H, size.height) * ceil_div(s.W, size.width) *
         ceil_div(s.columns, size.channels);
}

std::string misfit_of(ConvTile tile, const ConvShape& s) {
  const ConvTileSize& size = size_of(tile);
  if (s.N < size.images) return concat("is of ", size.images, " images, and there is ", s.N);
  if (size.width > 8 && s.W <= 8) return concat("is ", size.width, " pixels wide, the image ", s.W);
  if (size.channels > 64 && s.columns % size.channels != 0)
    return concat("needs columns that ", size.channels, " divides, not ", s.columns);
  return "";
}

ConvTile default_tile(const ConvShape& shape) {
  for (const ConvTile tile :
       {ConvTile::k8x16x128, ConvTile::k16x16x64, ConvTile::k2x8x8x128, ConvTile::k2x8x8x64}) {
    if (size_of(tile).images > 1 && shape.W > 8) continue;  // more border than a wide tile has
    if (misfit_of(tile, shape).empty() && blocks_of(tile, shape) >= kEnoughConvBlocks) return tile;
  }
  return ConvTile::k8x8x64;
}

void ConvTiles::add_line(const std::string& line, std::map<Key, int>& seen, int number) {
  const std::vector<std::string> words = words_of(line);
  if (words.empty()) return;
  if (words.size() != 8)
    throw InputError(concat("expected ", kFormat, ", got ", words.size(), " words"));
  if (words[1] != "fwd" && words[1] != "dgrad")
    throw InputError(concat("direction is '", words[1], "', expected fwd or dgrad"));
  Key key{int(number_of(words[0], "architecture", 80)), {words[1] == "dgrad"}};
  ConvShape& s = key.shape;
  s.N = number_of(words[2], "N", 1), s.H = number_of(words[3], "H", 1);
  s.W = number_of(words[4], "W", 1);
  s.columns = number_of(words[5], "columns", 8, 8), s.depth = number_of(words[6], "depth", 8, 8);
  const ConvTile tile = tile_of(words[7]);
  if (const std::string why = misfit_of(tile, s); !why.empty())
    throw InputError(concat("tile ", words[7], " does not fit: it ", why));
  const auto [before, is_new] = seen.try_emplace(key, number);
  if (!is_new) throw InputError(concat("this shape is in line ", before->second, " already"));
  tiles_[key] = tile;
}

ConvTiles ConvTiles::read(const std::string& path) {
  ConvTiles tiles;
  tiles.file_ = path;
  const std::vector<std::byte> bytes = read_file(path, kMostBytes);
  std::istringstream in(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  std::map<Key, int> seen;
  int number = 0;
  for (std::string line; std::getline(in, line);) try {
      tiles.add_line(line, seen, ++number);
    } catch (const InputError& error) {
      throw InputError(concat(path, ":", number, ": ", error.what()));
    }
  return tiles;
}

std::string ConvTiles::default_file() {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? "" : (program.parent_path() / "tiles.txt").string();
}

const ConvTiles& ConvTiles::in_force() {
  static const ConvTiles tiles = [] {
    if (const char* named = std::getenv("TESSERA_TILES")) return *named ? read(named) : ConvTiles();
    const std::string file = default_file();
    return std::filesystem::exists(file) ? read(file) : ConvTiles();
  }();
  return tiles;
}

void ConvTiles::set(int architecture, const ConvShape& shape, ConvTile tile) {
  const std::string why = misfit_of(tile, shape);
  ENSURE(why.empty(), "tile ", size_of(tile).name, " does not fit ", text_of(shape), ": it ", why);
  tiles_[{architecture, shape}] = tile;
}

bool ConvTiles::has(int architecture, const ConvShape& shape) const {
  return tiles_.contains({architecture, shape});
}

ConvTile ConvTiles::choose(int architecture, const ConvShape& shape) const {
  const auto found = tiles_.find({architecture, shape});
  return found == tiles_.end() ? default_tile(shape) : found->second;
}

}  // namespace tessera
