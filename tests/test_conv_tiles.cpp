// The table of the convolutions' tiles: its file, that it is obeyed, and that no tile changes a
// result.
#include "kernels/conv_tiles.h"

#include <catch2/catch.hpp>
#include <filesystem>
#include <thread>

#include "core/simt/trace.h"
#include "tests/cuda_devices.h"
#include "tests/paths.h"
#include "tests/run_program.h"
#include "tests/train_case.h"

using namespace tessera;

namespace {

ConvTiles read_tiles(const std::string& text) {
  const TempDir dir;
  write_text(dir / "tiles", text);
  return ConvTiles::read((dir / "tiles").string());
}
// What is said of a file, without the folder's name.
std::string error_of(const std::string& text) {
  const TempDir dir;
  write_text(dir / "tiles", text);
  try {
    ConvTiles::read((dir / "tiles").string());
  } catch (const InputError& error) {
    const std::string message = error.what(), name = (dir / "tiles").string();
    CHECK(message.starts_with(name + ':'));
    return message.substr(name.size() + 1);
  }
  return "no error";
}

Tensor drawn(Stream& stream, const char* name, const Shape& shape, float scale = 1) {
  return tensor_of(stream, as_bf16(normal(name, shape, scale)), DType::bf16);
}

constexpr ConvSpec kSame{1, 1, 1};
constexpr int64_t kSide = 10, kWide = 128, kNarrow = 168;  // of images; channels: 18 steps

// What one tile makes of a forward convolution, with and without moments, over one source and two,
// and of the data's gradients.
struct Made {
  std::vector<Values> exact;    // must not depend on the tile
  std::vector<Values> moments;  // may in their last bits
  std::vector<std::string> kernels;
};
Made run_with(int capability, int multiprocessors, std::optional<ConvTile> tile) {
  const simt::ScopedOptions scope(
      host_model(capability, simt::Order::Ascending, 0, multiprocessors));
  Stream stream(poisoned(DeviceType::simt));
  const auto choose = [&](bool data_gradient, int64_t columns, int64_t depth) {
    const ConvShape shape{data_gradient, 2, kSide, kSide, columns, depth};
    if (tile) stream.state<ConvTiles>().set(capability, shape, *tile);
  };
  Made made;
  const simt::LaunchTrace trace;
  const Shape narrow{2, kSide, kSide, kNarrow}, wide{2, kSide, kSide, kWide};
  const Tensor x = drawn(stream, "x", narrow), w = drawn(stream, "w", {kWide, 3, 3, kNarrow}, 0.2f);
  Tensor y = Tensor::empty(stream, wide, DType::bf16);
  choose(false, kWide, kNarrow);
  conv2d_fwd(stream, kSame, x, w, {}, y);
  made.exact.push_back(values_of(stream, y));
  MomentsOut out{{8}, Tensor::empty(stream, {2, 8, 2})};
  conv2d_fwd(stream, kSame, x, w, {}, y, &out);
  made.exact.push_back(values_of(stream, y));
  made.moments.push_back(values_of(stream, out.moments));

  // Back: a gradient of 128 channels.
  const Tensor dy = drawn(stream, "dy", narrow);
  Tensor dx = Tensor::empty(stream, wide, DType::bf16);
  choose(true, kWide, kNarrow);
  conv2d_bwd_data(stream, kSame, dy, drawn(stream, "v", {kNarrow, 3, 3, kWide}, 0.2f), {dx});
  made.exact.push_back(values_of(stream, dx));
  for (const simt::LaunchRecord& launch : trace.launches)
    if (launch.kernel.find("conv_halo_kernel") != std::string::npos)
      made.kernels.push_back(launch.kernel);
  return made;
}

}  // namespace

TEST_CASE("the rule for the convolutions' tiles", "[tiles]") {
  // Large images have large tiles, of 128 channels where these divide what is computed.
  CHECK(default_tile({false, 32, 64, 64, 64, 192}) == ConvTile::k16x16x64);
  CHECK(default_tile({true, 32, 64, 64, 192, 64}) == ConvTile::k16x16x64);
  CHECK(default_tile({false, 32, 16, 16, 256, 256}) == ConvTile::k8x16x128);
  // Small ones share one.
  CHECK(default_tile({false, 128, 8, 8, 512, 512}) == ConvTile::k2x8x8x128);
  CHECK(default_tile({false, 32, 8, 8, 512, 512}) == ConvTile::k2x8x8x64);
  CHECK(default_tile({true, 47, 8, 8, 256, 512}) == ConvTile::k2x8x8x64);
  CHECK(default_tile({false, 16, 8, 8, 512, 512}) == ConvTile::k8x8x64);
  CHECK(default_tile({false, 1, 800, 8, 64, 8}) == ConvTile::k8x8x64);
  // 96 blocks are enough.
  CHECK(default_tile({false, 96, 9, 9, 64, 8}) == ConvTile::k16x16x64);
  CHECK(default_tile({false, 95, 9, 9, 64, 8}) == ConvTile::k8x8x64);
  CHECK(default_tile({false, 48, 9, 9, 128, 8}) == ConvTile::k8x16x128);
  CHECK(default_tile({false, 47, 9, 9, 128, 8}) == ConvTile::k8x8x64);
  CHECK(default_tile({false, 48, 8, 9, 128, 8}) == ConvTile::k16x16x64);
}

TEST_CASE("a file of tiles overrides the rule for its shapes alone", "[tiles]") {
  const ConvShape shape{false, 32, 64, 64, 64, 192};
  const ConvTiles tiles = read_tiles(
      "# a comment\n\n"
      "90 fwd 32 64 64 64 192 8x8x64  # us: 8x8x64 1.5\n"
      "  89\tdgrad 1 16 20 128 8 8x16x128\r\n");
  CHECK(tiles.count() == 2);
  CHECK(tiles.has(90, shape));
  CHECK(tiles.choose(90, shape) == ConvTile::k8x8x64);
  CHECK(tiles.choose(80, shape) == default_tile(shape));
  ConvShape other = shape;
  other.data_gradient = true;
  CHECK(tiles.choose(90, other) == default_tile(other));
  CHECK(tiles.choose(89, {true, 1, 16, 20, 128, 8}) == ConvTile::k8x16x128);
  CHECK(ConvTiles().choose(90, shape) == ConvTile::k16x16x64);
  CHECK(read_tiles("").count() == 0);
}

TEST_CASE("what is wrong with a file of tiles is said with its line", "[tiles]") {
  CHECK(error_of("# fine\n90 fwd 32 64 64 64 192\n") ==
        "2: expected 'architecture fwd|dgrad N H W columns depth tile', got 7 words");
  CHECK(error_of("90 fwd 32 64 64 64 192 8x8x64 8x8x64\n").starts_with("1: expected 'archi"));
  CHECK(error_of("90 wgrad 32 64 64 64 192 8x8x64\n") ==
        "1: direction is 'wgrad', expected fwd or dgrad");
  CHECK(error_of("9.0 fwd 32 64 64 64 192 8x8x64\n") ==
        "1: architecture is '9.0', expected a number from 80");
  CHECK(error_of("75 fwd 32 64 64 64 192 8x8x64\n").starts_with("1: architecture is '75'"));
  CHECK(error_of("90 fwd 0 64 64 64 192 8x8x64\n") == "1: N is '0', expected a number from 1");
  CHECK(error_of("90 fwd 1 x 64 64 192 8x8x64\n").starts_with("1: H is 'x'"));
  CHECK(error_of("90 fwd 1 64 99999999999 64 192 8x8x64\n").starts_with("1: W is '99999999999'"));
  CHECK(error_of("90 fwd 1 64 64 65 192 8x8x64\n") ==
        "1: columns is '65', expected a number from 8 that 8 divides");
  CHECK(error_of("90 fwd 1 64 64 64 1 8x8x64\n").starts_with("1: depth is '1'"));
  CHECK(error_of("90 fwd 1 64 64 64 8 8x8x65\n") ==
        "1: there is no tile '8x8x65', expected one of 16x16x64, 8x16x128, 2x8x8x128, "
        "2x8x8x64, 8x8x64");
  CHECK(error_of("90 fwd 1 64 64 64 8 8x16x128\n") ==
        "1: tile 8x16x128 does not fit: it needs columns that 128 divides, not 64");
  CHECK(error_of("90 fwd 1 8 8 64 8 2x8x8x64\n") ==
        "1: tile 2x8x8x64 does not fit: it is of 2 images, and there is 1");
  CHECK(error_of("90 fwd 1 8 8 64 8 16x16x64\n") ==
        "1: tile 16x16x64 does not fit: it is 16 pixels wide, the image 8");
  CHECK(error_of("90 fwd 1 8 8 64 8 8x8x64\n\n90 fwd 1 8 8 64 8 8x8x64\n") ==
        "3: this shape is in line 1 already");
  CHECK_THROWS_AS(ConvTiles::read("/no/such/file"), InputError);
  CHECK_THROWS_AS(ConvTiles().set(90, {false, 1, 8, 8, 64, 8}, ConvTile::k8x16x128), Error);
}

void compare_tiles(int capability, int multiprocessors) {
  const Made usual = run_with(capability, multiprocessors, {});
  REQUIRE(usual.kernels.size() == 3);
  for (const ConvTileSize& size : kConvTiles) {
    INFO(size.name << " on " << capability << " of " << multiprocessors << " multiprocessors");
    const Made made = run_with(capability, multiprocessors, size.tile);
    REQUIRE(made.kernels.size() == usual.kernels.size());
    // At most 16 blocks: few for 132 multiprocessors, for which these tiles have kernels.
    const bool few = capability == 90 && multiprocessors > 16 &&
                     (size.channels == 128 || size.tile == ConvTile::k8x8x64);
    const int many = size.tile == ConvTile::k8x8x64 ? 4 : 2;
    for (const std::string& kernel : made.kernels) {
      CHECK_THAT(kernel, Catch::Contains(concat("HaloTile<", size.height, ", ", size.width, ", ",
                                                size.channels, ", ")));
      CHECK_THAT(kernel, Catch::Contains(concat(", 1, ", size.images, ">")));
      CHECK_THAT(kernel, Catch::EndsWith(concat(", ", few ? many / 2 : many, ">")));
    }
    REQUIRE(made.exact.size() == usual.exact.size());
    for (size_t i = 0; i < usual.exact.size(); ++i) {
      INFO("result " << i);
      CHECK(made.exact[i].data == usual.exact[i].data);
    }
    for (size_t i = 0; i < usual.moments.size(); ++i)
      CHECK(difference(made.moments[i], usual.moments[i], 1e-5) == "");
  }
}

TEST_CASE("a convolution has the tile of the table, and the same bits with each", "[tiles][cuda]") {
  compare_tiles(80, 108);
  compare_tiles(90, 132);
  compare_tiles(90, 1);
}

TEST_CASE("the tiles in force are read once, for all threads", "[tiles]") {
  const ConvTiles& first = ConvTiles::in_force();
  const TempDir dir;
  write_text(dir / "tiles", "90 fwd 1 8 8 64 8 8x8x64\n");
  const char* const named = std::getenv("TESSERA_TILES");
  const std::string before = named ? named : "";
  setenv("TESSERA_TILES", (dir / "tiles").c_str(), 1);
  std::vector<const ConvTiles*> seen(8);
  {
    std::vector<std::jthread> threads;
    for (const ConvTiles*& one : seen)
      threads.emplace_back([&one] { one = &ConvTiles::in_force(); });
  }
  named ? setenv("TESSERA_TILES", before.c_str(), 1) : unsetenv("TESSERA_TILES");
  for (const ConvTiles* one : seen) {
    CHECK(one == &first);
    CHECK(one->file() != (dir / "tiles").string());
  }
}

TEST_CASE("bench --tune writes a table that is obeyed", "[tiles][bench]") {
  const TempDir dir;
  const std::string file = (dir / "tiles").string();
  const Finished run = run_program("bench", {"--device", "simt", "--seconds", "0", "--tune", file});
  INFO(run.err);
  REQUIRE(run.status == 0);
  const ConvTiles tiles = ConvTiles::read(file);
  CHECK(tiles.count() == 3);
  CHECK(tiles.has(90, {false, 1, 9, 9, 128, 8}));
  CHECK(tiles.has(90, {true, 1, 9, 9, 128, 8}));
  // Each with its fastest tile first, and all that fit.
  std::istringstream lines(read_text(file));
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("#")) continue;
    INFO(line);
    std::istringstream words(line.substr(line.find("us:") + 3));
    std::string chosen = line.substr(0, line.find("  #")), tile;
    chosen = chosen.substr(chosen.rfind(' ') + 1);
    double seconds, before = 0;
    int times = 0;
    for (; words >> tile >> seconds; before = seconds) {
      if (times++ == 0) CHECK(tile == chosen);
      CHECK(seconds >= before);
    }
    CHECK(times == (line.find(" 8 8 ") != std::string::npos ? 2 : 3));
  }
  const Finished shown = run_program("bench", {"--tiles"}, "TESSERA_TILES=" + file);
  CHECK(shown.status == 0);
  CHECK_THAT(shown.out, Catch::Contains("Table: " + file));
  if (!has_gpu()) {
    const Finished none = run_program("bench", {"--tune", file});
    CHECK(none.status == 3);
    CHECK(none.err == "bench: no GPU here: there is nothing to tune\n");
  }
}

TEST_CASE("bench --tiles shows the table in force", "[tiles][bench]") {
  if (has_gpu()) return;  // it shows that one alone
  const TempDir dir;
  const std::string file = (dir / "tiles").string(), resources = (dir / "resources").string();
  write_text(file, "90 fwd 32 64 64 64 64 8x8x64\n");
  write_text(
      resources,
      "| kernel | arch | threads | shared | registers |\n| --- | --- | ---: | ---: | ---: |\n"
      "| `conv::conv_halo_kernel<conv::HaloTile<16, 16, 64, 64, 32, 1, 1>, "
      "conv::HaloSource, conv::HaloImage, 2>` | sm_90a | 256 | 92160 | 168 |\n");
  const Finished run =
      run_program("bench", {"--tiles", "--resources", resources}, "TESSERA_TILES=" + file);
  INFO(run.err);
  REQUIRE(run.status == 0);
  // 64 tiles of 8 x 8 an image; 51,200 bytes and 1 KB of 228 KB: 4 blocks or less for each of 132.
  CHECK_THAT(run.out, Catch::Contains("| 90 | H200 | fwd 32 64 64 64 64 | 8x8x64 | table | 2048 | "
                                      ">= 3.88 | - | 51200 |"));
  // With the registers: one block, 16 tiles an image.
  CHECK_THAT(run.out,
             Catch::Contains("| 90 | H200 | dgrad 32 64 64 64 64 | 16x16x64 | rule | 512 | "
                             "3.88 | 168 | 92160 |"));
  // 128 blocks are few for 132 multiprocessors: four stages of 24,576 bytes, and two inputs.
  CHECK_THAT(run.out,
             Catch::Contains("| 90 | H200 | fwd 32 16 16 256 256 | 8x16x128 | rule | 128 | "
                             ">= 0.97 | - | 122880 |"));
  CHECK_THAT(run.out,
             Catch::Contains("| 80 | A100 | fwd 32 64 64 64 64 | 16x16x64 | rule | 512 |"));
  CHECK_THAT(run.out, Catch::Contains("| 89 | RTX4090 | fwd 128 8 8 512 512 | 2x8x8x128 |"));
  write_text(resources, "nothing\n");
  CHECK(run_program("bench", {"--tiles", "--resources", resources}).status == 1);
}

TEST_CASE("a program reads tiles.txt beside it, and stops at a bad one", "[tiles][bench]") {
  const TempDir dir;
  const auto program = dir / "bench";
  std::filesystem::copy_file(concat(bin_dir(), "/bench"), program);
  const auto run = [&](const std::string& environment) {
    return std::system(concat(environment, ' ', program.string(), " --tiles >",
                              (dir / "out").string(), " 2>", (dir / "err").string())
                           .c_str());
  };
  CHECK(run("") == 0);
  CHECK_THAT(read_text(dir / "out"), Catch::Contains("Table: none"));
  write_text(dir / "tiles.txt", "90 fwd 32 64 64 64 64 8x8x64\n");
  CHECK(run("") == 0);
  CHECK_THAT(read_text(dir / "out"), Catch::Contains("Table: " + (dir / "tiles.txt").string()));
  CHECK(run("TESSERA_TILES=") == 0);
  CHECK_THAT(read_text(dir / "out"), Catch::Contains("Table: none"));
  write_text(dir / "tiles.txt", "90 fwd\n");
  CHECK(run("") != 0);
  CHECK(read_text(dir / "err") ==
        concat("bench: error: ", (dir / "tiles.txt").string(),
               ":1: expected 'architecture fwd|dgrad N H W columns depth tile', got 2 words\n"));
}

TEST_CASE("train obeys a file of tiles, and stops at a bad one before it begins", "[tiles]") {
  const TempDir dir;
  const auto data = write_tiny_data(dir);
  const auto file = (dir / "tiles").string();
  const auto train = [&](const std::string& device) {
    std::vector<std::string> words{"--data", data.string(), "--device",
                                   device,   "--out",       (dir / "run").string()};
    words.insert(words.end(), {"--steps", "1"});
    for (const auto& [name, value] : kTinyNetwork)
      words.insert(words.end(), {concat("--", name), value});
    return run_program("train", words, "TESSERA_TILES=" + file);
  };
  write_text(file, "90 fwd 1 8 8 64 8 8x8x63\n");
  const Finished bad = train("simt");
  CHECK(bad.status == 1);
  CHECK(bad.err == concat("train: error: ", file,
                          ":1: there is no tile '8x8x63', expected one of 16x16x64, 8x16x128, "
                          "2x8x8x128, 2x8x8x64, 8x8x64\n"));
  CHECK(!std::filesystem::exists(dir / "run"));
  write_text(file, "90 fwd 1 8 8 64 8 8x8x64\n");
  const Finished good = train("simt");
  INFO(good.err);
  CHECK(good.status == 0);
  CHECK_THAT(good.out, Catch::Contains("  tiles    " + file));
}
