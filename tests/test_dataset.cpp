// Which images are trained on and which are held out, for every kind of source, and that they come
// out at the asked size and channels.
#include "apps/dataset.h"

#include <catch2/catch.hpp>
#include <filesystem>
#include <thread>
#include <vector>

#include "apps/device_images.h"
#include "apps/image.h"
#include "apps/resize.h"
#include "core/check.h"
#include "core/simt/options.h"
#include "core/simt/runtime.h"
#include "tests/idx_files.h"
#include "tests/paths.h"
#include "tests/temp_dir.h"

using namespace tessera;
namespace fs = std::filesystem;

namespace {

// n images of 2x2 whose pixels are all `first`, first + 1, ... (modulo 256).
std::string numbered_idx(int n, int first = 0) {
  std::string pixels;
  for (int i = 0; i < n; ++i) pixels += std::string(4, static_cast<char>(first + i));
  return idx_file(n, 2, 2, pixels);
}

// Grey images 000.png, ..., whose pixels are all their number, each of another size.
void write_numbered_pngs(const TempDir& dir, int n) {
  for (int i = 0; i < n; ++i) {
    const int h = 1 + i % 5, w = 1 + i % 3;
    const std::string digits = std::to_string(1000 + i).substr(1);
    write_png(dir / (digits + ".png"), {w, h, 1, std::vector<uint8_t>(h * w, i)});
  }
}

int train_value(const Dataset& data, int64_t i) {
  std::vector<uint8_t> out(16);
  data.train_image(i, out.data());
  return out == std::vector<uint8_t>(16, out[0]) ? out[0] : -1;
}

int held_out_value(const Dataset& data, int64_t i) {
  std::vector<uint8_t> out(16);
  data.held_out_image(i, out.data());
  return out == std::vector<uint8_t>(16, out[0]) ? out[0] : -1;
}

std::string refusal(const fs::path& path) {
  return message_of<InputError>([&] { Dataset::open(path.string(), 4, 1); });
}

}  // namespace

TEST_CASE("dataset: a directory of train and t10k files", "[dataset]") {
  TempDir dir;
  write_text(dir / "train-images-idx3-ubyte.gz", gzip(numbered_idx(20)));
  write_text(dir / "t10k-images-idx3-ubyte", numbered_idx(600, 7));
  const Dataset data = Dataset::open(dir.path().string(), 4, 1);
  CHECK(data.train_size() == 20);
  CHECK(data.held_out_size() == 512);
  for (int i = 0; i < 20; ++i) CHECK(train_value(data, i) == i);
  CHECK(held_out_value(data, 0) == 7);
  CHECK(held_out_value(data, 511) == (511 + 7) % 256);
  CHECK(data.description() == "IDX, 20 train + 512 held out, 2x2 -> 4x4");
  CHECK_THROWS_AS(train_value(data, 20), Error);
  CHECK_THROWS_AS(train_value(data, -1), Error);
  CHECK_THROWS_AS(held_out_value(data, 512), Error);
}

TEST_CASE("dataset: a directory without t10k holds out the last tenth", "[dataset]") {
  TempDir dir;
  write_text(dir / "train-images-idx3-ubyte", numbered_idx(39));
  const Dataset data = Dataset::open(dir.path().string(), 4, 1);
  CHECK(data.train_size() == 36);
  CHECK(data.held_out_size() == 3);
  CHECK(train_value(data, 35) == 35);
  CHECK(held_out_value(data, 0) == 36);
  CHECK(held_out_value(data, 2) == 38);
}

TEST_CASE("dataset: one IDX file", "[dataset]") {
  TempDir dir;
  write_text(dir / "a", numbered_idx(2));
  const Dataset two = Dataset::open((dir / "a").string(), 4, 1);
  CHECK(two.train_size() == 1);
  CHECK(held_out_value(two, 0) == 1);
  write_text(dir / "b", numbered_idx(6000));
  const Dataset many = Dataset::open((dir / "b").string(), 4, 1);
  CHECK(many.train_size() == 6000 - 512);
  CHECK(many.held_out_size() == 512);
  CHECK(held_out_value(many, 0) == (6000 - 512) % 256);
}

TEST_CASE("dataset: a folder of images, sorted by name", "[dataset]") {
  TempDir dir;
  write_numbered_pngs(dir, 21);
  write_text(dir / "notes.txt", "ignored");
  write_text(dir / ".hidden.png", "ignored");
  fs::create_directory(dir / "folder.png");
  const Dataset data = Dataset::open(dir.path().string(), 4, 1);
  CHECK(data.train_size() == 19);
  CHECK(data.held_out_size() == 2);
  for (int i = 0; i < 19; ++i) CHECK(train_value(data, i) == i);
  CHECK(held_out_value(data, 0) == 19);
  CHECK(held_out_value(data, 1) == 20);
  CHECK(data.description() == "folder of images, 19 train + 2 held out, any size -> 4x4");
}

TEST_CASE("dataset: PNG and JPEG of every form are stretched to the square", "[dataset]") {
  const fs::path folder = fs::path(test_dir()) / "golden" / "images";
  for (const int channels : {1, 3}) {
    const Dataset data = Dataset::open(folder.string(), 16, channels);
    CHECK(data.train_size() == 35);
    CHECK(data.held_out_size() == 3);
    const Image first = read_image(folder / "cmyk.jpg", channels);
    std::vector<uint8_t> expected(16 * 16 * channels), found(expected.size());
    resize_bilinear(first.pixels.data(), first.height, first.width, channels, 16, 16,
                    expected.data());
    data.train_image(0, found.data());
    CHECK(found == expected);
  }
}

TEST_CASE("dataset: IDX images are resized as Pillow does and replicated to RGB", "[dataset]") {
  TempDir dir;
  std::string pixels;
  for (int i = 0; i < 2 * 5 * 7; ++i) pixels.push_back(static_cast<char>(i * 91));
  write_text(dir / "a", idx_file(2, 5, 7, pixels));
  std::vector<uint8_t> expected(8 * 8), found(8 * 8), colour(8 * 8 * 3);
  const auto* second = reinterpret_cast<const uint8_t*>(pixels.data()) + 5 * 7;
  resize_bilinear(second, 5, 7, 1, 8, 8, expected.data());
  Dataset::open((dir / "a").string(), 8, 1).held_out_image(0, found.data());
  CHECK(found == expected);
  Dataset::open((dir / "a").string(), 8, 3).held_out_image(0, colour.data());
  for (size_t i = 0; i < colour.size(); ++i) REQUIRE(colour[i] == expected[i / 3]);
}

TEST_CASE("dataset: two threads read at once", "[dataset]") {
  TempDir dir;
  write_text(dir / "a", numbered_idx(200));
  const Dataset data = Dataset::open((dir / "a").string(), 4, 1);
  bool train_right = true, held_out_right = true;
  std::thread loader([&] {
    for (int i = 0; i < 5000; ++i) train_right &= train_value(data, i % 180) == i % 180;
  });
  for (int i = 0; i < 5000; ++i) held_out_right &= held_out_value(data, i % 20) == 180 + i % 20;
  loader.join();
  CHECK(train_right);
  CHECK(held_out_right);
}

TEST_CASE("dataset: what cannot be used is named", "[dataset]") {
  TempDir dir;
  const std::string here = dir.path().string();
  CHECK(refusal(dir / "no") == "cannot read " + here + "/no: No such file or directory");
  CHECK(refusal(dir.path()) ==
        here +
            ": neither train-images-idx3-ubyte[.gz] nor PNG or JPEG files are in this directory");
  write_numbered_pngs(dir, 1);
  CHECK(refusal(dir.path()) == here + ": 1 image, at least 2 are needed: one is held out");
  CHECK(refusal(dir / "000.png") ==
        here +
            "/000.png: not an IDX3 file of unsigned bytes: it begins with 0x89504e47, "
            "expected 0x00000803");
  write_text(dir / "bad.JPG", "no picture");
  CHECK(refusal(dir.path()) == here + "/bad.JPG: neither a PNG nor a JPEG image");
  write_text(dir / "idx", numbered_idx(1));
  CHECK(refusal(dir / "idx") == here + "/idx: 1 image, at least 2 are needed: one is held out");
  write_text(dir / "train-images-idx3-ubyte", numbered_idx(3));
  write_text(dir / "t10k-images-idx3-ubyte", numbered_idx(0));
  CHECK(refusal(dir.path()) == here + "/t10k-images-idx3-ubyte: no images, at least 1 is needed");
}

TEST_CASE("dataset: auto is Fashion-MNIST or says how to get it", "[dataset]") {
  if (fs::exists("/usr/share/datasets/fashion-mnist")) {
    CHECK(Dataset::open("auto", 32, 1).description() ==
          "IDX, 60000 train + 512 held out, 28x28 -> 32x32");
  } else {
    CHECK(refusal("auto") ==
          "no dataset in /usr/share/datasets/fashion-mnist: install the Debian package "
          "dataset-fashion-mnist, or name other data with --data");
  }
}

TEST_CASE("of a file that is there packed and unpacked the latter is read", "[dataset]") {
  const TempDir dir;
  write_text(dir / "train-images-idx3-ubyte", idx_file(3, 2, 2, std::string(12, 'a')));
  write_text(dir / "train-images-idx3-ubyte.gz", gzip(idx_file(30, 2, 2, std::string(120, 'b'))));
  CHECK(Dataset::open(dir.path().string(), 2, 1).train_size() == 2);
}

TEST_CASE("images are on the device where half of its free memory holds them", "[dataset][cuda]") {
  const TempDir dir;
  std::string pixels;
  for (int i = 0; i < 2400; ++i) pixels += std::string(4, char(i % 251));
  write_text(dir / "images", idx_file(2400, 2, 2, pixels));
  const Dataset data = Dataset::open((dir / "images").string(), 2, 1);
  const int64_t count = data.train_size();
  REQUIRE(count > 2048);
  const simt::ScopedOptions restore(simt::options());
  Stream stream(Device::open(DeviceType::simt, 2)), cpu(Device::open(DeviceType::cpu));
  CHECK(!images_on_device(cpu, data, 2, 1));
  {
    const Tensor images = images_on_device(stream, data, 2, 1);
    REQUIRE(images.shape() == Shape{count, 2, 2, 1});
    const auto found = images.to_vector<uint8_t>(stream);
    bool right = true;
    for (int64_t i = 0; i < count * 4; ++i) right &= found[size_t(i)] == uint8_t(i / 4 % 251);
    CHECK(right);
  }
  // At most half of what is free.
  stream.device().pool()->trim();
  simt::options().total_memory = simt::memory_use().bytes + size_t(count) * 4 * 2;
  CHECK(images_on_device(stream, data, 2, 1).defined());
  stream.device().pool()->trim();
  simt::options().total_memory = simt::memory_use().bytes + size_t(count) * 4 * 2 - 2;
  CHECK(!images_on_device(stream, data, 2, 1).defined());
}
