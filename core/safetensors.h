// The safetensors format: named tensors in one file, as PyTorch users exchange them.
//   u64 little-endian N | N bytes of JSON, padded with spaces | the data of all tensors
//   JSON: {"__metadata__": {"key": "value"}, "name": {"dtype": "F32", "shape": [2, 3],
//          "data_offsets": [begin, end]}}, offsets relative to the end of the JSON.
// Data is little-endian and row-major, without holes or overlaps. Format and limits:
// https://github.com/huggingface/safetensors
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace tessera {

struct SafeTensor {
  std::string dtype;  // as in the file: "F32", "BF16", "I64", ...
  std::vector<int64_t> shape;
  // Row-major, exactly product(shape) elements. Not always aligned for the dtype: memcpy it out.
  std::span<const std::byte> data;
};

// A whole file in memory, checked. Every error is an InputError naming file and tensor.
class SafeTensors {
 public:
  static SafeTensors read(const std::filesystem::path& path);
  // The same from memory. `origin` stands for the file in errors.
  static SafeTensors parse(std::vector<std::byte> content, std::string origin);

  SafeTensors(SafeTensors&&) = default;
  SafeTensors& operator=(SafeTensors&&) = default;

  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  std::vector<std::string> names() const;  // sorted
  bool contains(const std::string& name) const { return tensors_.contains(name); }
  const SafeTensor& at(const std::string& name) const;
  const std::string& origin() const { return origin_; }

 private:
  SafeTensors() = default;

  std::string origin_;
  std::vector<std::byte> content_;  // what the tensors' spans point into
  std::map<std::string, std::string> metadata_;
  std::map<std::string, SafeTensor> tensors_;
};

struct SafeTensorEntry {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;  // row-major, product(shape) * size_of(dtype) bytes
};

// "[2,3]", for messages: a file's shape may have more dimensions than a Tensor.
std::string shape_text(std::span<const int64_t> shape);

// The name of a dtype in the format: f32 -> "F32".
const char* safetensors_name(DType dtype);

// Replaces `path` atomically. The same tensors in any order give the same bytes: they are laid out
// by element size, largest first, then by name, which also aligns each of them. Nothing is copied.
void write_safetensors(const std::filesystem::path& path, std::vector<SafeTensorEntry> entries,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace tessera
