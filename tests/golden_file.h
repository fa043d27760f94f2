// Golden files (tests/golden/README.md) as tensors of the engine. Files hold NCHW images and OIHW
// filters; both become the engine's NHWC and KRSC by moving the second dimension to the end.
#pragma once

#include <cmath>
#include <cstring>

#include "core/safetensors.h"
#include "core/tensor.h"
#include "tests/op_runner.h"

namespace tessera {

// [A,B,C,D] -> [A,C,D,B]; other ranks stay as they are.
inline Values channels_last(const Values& from) {
  if (from.shape.rank() != 4) return from;
  const int64_t A = from.shape[0], B = from.shape[1], CD = from.shape[2] * from.shape[3];
  Values to{{A, from.shape[2], from.shape[3], B}, std::vector<double>(from.data.size())};
  for (int64_t a = 0; a < A; ++a)
    for (int64_t b = 0; b < B; ++b)
      for (int64_t i = 0; i < CD; ++i)
        to.data[size_t((a * CD + i) * B + b)] = from.data[size_t((a * B + b) * CD + i)];
  return to;
}

class GoldenFile {
 public:
  explicit GoldenFile(const std::filesystem::path& path) : file_(SafeTensors::read(path)) {}

  const SafeTensors& file() const { return file_; }
  bool has(const std::string& name) const { return file_.contains(name); }
  const std::string& attribute(const std::string& key) const {
    const auto found = file_.metadata().find(key);
    ENSURE(found != file_.metadata().end(), file_.origin(), " has no attribute '", key, "'");
    return found->second;
  }
  int integer(const std::string& key) const { return std::stoi(attribute(key)); }
  double number(const std::string& key) const { return std::stod(attribute(key)); }

  // As in the file; F32, F64 and I64 become doubles. A scalar gets the shape [1].
  Values values(const std::string& name) const {
    const SafeTensor& tensor = file_.at(name);
    return part(tensor, tensor.shape.empty() ? Shape{1} : Shape(std::span(tensor.shape)), 0);
  }
  // The i-th of a tensor's first dimension: of all steps, one.
  Values row(const std::string& name, int64_t i) const {
    const SafeTensor& tensor = file_.at(name);
    ENSURE(i < tensor.shape.at(0), file_.origin(), ": ", name, " has no row ", i);
    return part(tensor, Shape(std::span(tensor.shape).subspan(1)), i);
  }
  // In the engine's layout.
  Values here(const std::string& name) const { return channels_last(values(name)); }
  Tensor tensor(Stream& stream, const std::string& name, DType dtype) const {
    return tensor_of(stream, here(name), dtype);
  }

 private:
  static Values part(const SafeTensor& tensor, const Shape& shape, int64_t i) {
    Values result{shape, std::vector<double>(size_t(shape.numel()))};
    for (size_t j = 0; j < result.data.size(); ++j)
      result.data[j] = element(tensor, size_t(i) * result.data.size() + j);
    return result;
  }
  template <class T>
  static T read(const SafeTensor& tensor, size_t i) {
    T value;
    std::memcpy(&value, tensor.data.data() + i * sizeof(T), sizeof(T));
    return value;
  }
  static double element(const SafeTensor& tensor, size_t i) {
    if (tensor.dtype == "F32") return read<float>(tensor, i);
    if (tensor.dtype == "F64") return read<double>(tensor, i);
    ENSURE(tensor.dtype == "I64", "a golden tensor of type ", tensor.dtype);
    return double(read<int64_t>(tensor, i));
  }

  SafeTensors file_;
};

// Timesteps as the engine takes them.
inline Tensor timesteps(Stream& stream, const Values& t) {
  return Tensor::from<int32_t>(stream, t.shape, std::vector<int32_t>(t.data.begin(), t.data.end()));
}

inline double norm(const Values& values) {
  double squares = 0;
  for (double value : values.data) squares += value * value;
  return std::sqrt(squares);
}

// Norm of the difference; NaN if the shapes differ, which no comparison passes.
inline double distance(const Values& a, const Values& b) {
  if (a.shape != b.shape) return NAN;
  double squares = 0;
  for (size_t i = 0; i < a.data.size(); ++i) squares += std::pow(a.data[i] - b.data[i], 2);
  return std::sqrt(squares);
}

}  // namespace tessera
