// IDX3 files of unsigned bytes: the format of MNIST and Fashion-MNIST images, raw or gzipped.
//   00 00 08 03 | u32 n | u32 h | u32 w, all big-endian | n*h*w bytes, row by row
// Format: http://yann.lecun.com/exdb/mnist (section "File formats").
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace tessera {

struct IdxImages {
  int64_t n = 0, h = 0, w = 0;
  std::vector<uint8_t> pixels;  // [n, h, w]
};

// Reads a raw or gzipped file, told apart by content. Every error is an InputError naming the file.
IdxImages read_idx(const std::filesystem::path& path);

// The same from memory. `origin` stands for the file in errors.
IdxImages parse_idx(std::span<const std::byte> content, const std::string& origin);

}  // namespace tessera
