// IDX images stay in memory as they are in the file and are resized when asked for: Fashion-MNIST
// takes 47 MB that way, at any image size. The files of a folder are decoded and resized once.
#include "apps/dataset.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <vector>

#include "apps/idx.h"
#include "apps/image.h"
#include "apps/image_folder.h"
#include "apps/resize.h"
#include "core/check.h"

namespace tessera {

namespace fs = std::filesystem;

struct DatasetImages {
  std::string origin;           // the file or folder
  std::string kind;             // "IDX" or "folder of images"
  std::string native_size;      // "28x28"
  int64_t count;                // how many
  int stored_channels;          // 1 or 3
  int channels;                 // as asked for: 3 also from 1 stored
  int size;                     // as asked for
  Resizer resizer;              // from stored to size x size
  int64_t image_bytes;          // of one image as stored
  std::vector<uint8_t> pixels;  // [count, image_bytes]
};

namespace {

constexpr int64_t kMaxHeldOut = 512;
constexpr const char* kAutoPath = "/usr/share/datasets/fashion-mnist";
constexpr const char* kTrainName = "train-images-idx3-ubyte";
constexpr const char* kTestName = "t10k-images-idx3-ubyte";

// directory/name or directory/name.gz, whichever is there first; empty if neither.
fs::path find_idx(const fs::path& directory, const std::string& name) {
  for (const char* suffix : {"", ".gz"}) {
    const fs::path path = directory / (name + suffix);
    std::error_code error;
    if (fs::exists(path, error)) return path;
  }
  return {};
}

std::shared_ptr<const DatasetImages> load_idx(const fs::path& path, int size, int channels) {
  IdxImages idx = read_idx(path);
  if (idx.n == 0) throw InputError(concat(path.string(), ": no images, at least 1 is needed"));
  const int h = static_cast<int>(idx.h), w = static_cast<int>(idx.w);
  return std::make_shared<DatasetImages>(
      DatasetImages{path.string(), "IDX", concat(h, "x", w), idx.n, 1, channels, size,
                    Resizer(h, w, 1, size, size), idx.h * idx.w, std::move(idx.pixels)});
}

std::shared_ptr<const DatasetImages> load_folder(const fs::path& folder, int size, int channels) {
  const std::vector<fs::path> paths = list_images(folder);
  if (paths.empty()) {
    throw InputError(concat(folder.string(), ": neither ", kTrainName,
                            "[.gz] nor PNG or JPEG files are in this directory"));
  }
  const auto count = static_cast<int64_t>(paths.size());
  const int64_t image_bytes = int64_t{size} * size * channels;
  std::vector<uint8_t> pixels;
  try {
    pixels.resize(static_cast<size_t>(count) * image_bytes);
  } catch (const std::exception&) {  // bad_alloc or length_error
    throw InputError(concat(folder.string(), ": no memory for ", count, " images of ", size, "x",
                            size, "x", channels));
  }
  uint8_t* out = pixels.data();
  for (const fs::path& path : paths) {
    const Image image = read_image(path, channels);
    resize_bilinear(image.pixels.data(), image.height, image.width, channels, size, size, out);
    out += image_bytes;
  }
  return std::make_shared<DatasetImages>(DatasetImages{
      folder.string(), "folder of images", "any size", count, channels, channels, size,
      Resizer(size, size, channels, size, size), image_bytes, std::move(pixels)});
}

}  // namespace

Dataset::Dataset(Range train, Range held_out)
    : train_(std::move(train)), held_out_(std::move(held_out)) {
  const DatasetImages& images = *train_.images;
  description_ = concat(images.kind, ", ", train_.count, " train + ", held_out_.count,
                        " held out, ", images.native_size, " -> ", images.size, "x", images.size);
}

// The last 10% are held out.
Dataset Dataset::split(std::shared_ptr<const DatasetImages> images) {
  if (images->count < 2) {
    throw InputError(concat(images->origin, ": ", images->count,
                            " image, at least 2 are needed: one is held out"));
  }
  const int64_t held_out = std::clamp<int64_t>(images->count / 10, 1, kMaxHeldOut);
  const int64_t train = images->count - held_out;
  return Dataset({images, 0, train}, {images, train, held_out});
}

Dataset Dataset::open(const std::string& path_or_auto, int image_size, int channels) {
  ENSURE(image_size > 0 && image_size <= 65535 && (channels == 1 || channels == 3), image_size,
         " and ", channels);
  std::error_code error;
  if (path_or_auto == "auto" && !fs::exists(kAutoPath, error)) {
    throw InputError(concat("no dataset in ", kAutoPath,
                            ": install the Debian package dataset-fashion-mnist, or name other "
                            "data with --data"));
  }
  const fs::path path = path_or_auto == "auto" ? kAutoPath : path_or_auto;
  if (!fs::is_directory(path, error)) return split(load_idx(path, image_size, channels));

  const fs::path train_path = find_idx(path, kTrainName), test_path = find_idx(path, kTestName);
  if (train_path.empty()) return split(load_folder(path, image_size, channels));
  auto train = load_idx(train_path, image_size, channels);
  if (test_path.empty()) return split(std::move(train));
  auto test = load_idx(test_path, image_size, channels);
  const int64_t train_count = train->count, test_count = std::min(test->count, kMaxHeldOut);
  return Dataset({std::move(train), 0, train_count}, {std::move(test), 0, test_count});
}

void Dataset::copy(const Range& range, int64_t i, uint8_t* out) {
  ENSURE(i >= 0 && i < range.count, "image ", i, " of ", range.count);
  const DatasetImages& images = *range.images;
  images.resizer.resize(images.pixels.data() + (range.first + i) * images.image_bytes, out);
  if (images.channels == images.stored_channels) return;
  // Grey to RGB in place, from the end so that nothing is overwritten before it is read.
  for (int64_t p = int64_t{images.size} * images.size - 1; p >= 0; --p) {
    std::fill_n(out + 3 * p, 3, uint8_t{out[p]});
  }
}

}  // namespace tessera
