// The pictures to train on, and those held out to judge by: all as size x size 8-bit images.
// Sources: a directory with train-images-idx3-ubyte[.gz] and perhaps t10k-images-idx3-ubyte[.gz]
// (MNIST, Fashion-MNIST), one IDX file, or a folder of PNG and JPEG files of any sizes, which are
// stretched to the square. Held out are the first of t10k where there is one, else the last 10%
// (of a folder: by name), at least 1; never more than 512.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace tessera {

struct DatasetImages;  // what one source holds in memory

class Dataset {
 public:
  // path: one of the above, or "auto" for Debian's Fashion-MNIST. channels: 1 or 3; colour becomes
  // grey as Pillow's "L", grey is replicated. Every error is an InputError naming the file.
  static Dataset open(const std::string& path_or_auto, int image_size, int channels);

  int64_t train_size() const { return train_.count; }
  int64_t held_out_size() const { return held_out_.count; }

  // Writes image i, 0 <= i < size, to out: [image_size, image_size, channels]. Thread-safe.
  void train_image(int64_t i, uint8_t* out) const { copy(train_, i, out); }
  void held_out_image(int64_t i, uint8_t* out) const { copy(held_out_, i, out); }

  // For the banner: "IDX, 60000 train + 512 held out, 28x28 -> 32x32".
  const std::string& description() const { return description_; }

 private:
  // Consecutive images of a source.
  struct Range {
    std::shared_ptr<const DatasetImages> images;
    int64_t first = 0, count = 0;
  };

  Dataset(Range train, Range held_out);
  static Dataset split(std::shared_ptr<const DatasetImages> images);
  static void copy(const Range& range, int64_t i, uint8_t* out);

  Range train_, held_out_;
  std::string description_;
};

}  // namespace tessera
