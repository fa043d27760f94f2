#include "layers/weights.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

namespace tessera {
namespace {

// Calls f(index here, index in the file) for every element of a [K,R,S,C] filter.
template <class F>
void for_each_element(FileLayout layout, const Shape& shape, F f) {
  if (layout == FileLayout::Same) {
    for (int64_t i = 0; i < shape.numel(); ++i) f(i, i);
    return;
  }
  const int64_t K = shape[0], R = shape[1], S = shape[2], C = shape[3];
  int64_t here = 0;
  for (int64_t k = 0; k < K; ++k)
    for (int64_t r = 0; r < R; ++r)
      for (int64_t s = 0; s < S; ++s)
        // Both layouts of the file are [K, C, R, S] in memory: channel c*4 + p1*2 + p2 of a
        // rearranged 1x1 filter is [c, p1, p2].
        for (int64_t c = 0; c < C; ++c) f(here++, ((k * C + c) * R + r) * S + s);
}

template <class T>
T element(const std::byte* data, size_t i) {
  T value;
  std::memcpy(&value, data + i * sizeof(T), sizeof(T));
  return value;
}

const SafeTensor& expect_shape(const SafeTensors& file, const std::string& name,
                               const Shape& shape) {
  if (!file.contains(name))
    throw InputError(concat(file.origin(), ": tensor '", name, "' is missing"));
  const SafeTensor& tensor = file.at(name);
  if (!std::ranges::equal(tensor.shape, shape.sizes()))
    throw InputError(concat(file.origin(), ": tensor '", name, "' has shape ",
                            shape_text(tensor.shape), ", expected ", shape));
  return tensor;
}

std::vector<double> read_values(const SafeTensors& file, const std::string& name,
                                const Shape& shape) {
  const SafeTensor& tensor = expect_shape(file, name, shape);
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (size_t i = 0; i < values.size(); ++i) {
    if (tensor.dtype == "F32")
      values[i] = element<float>(tensor.data.data(), i);
    else if (tensor.dtype == "F64")
      values[i] = element<double>(tensor.data.data(), i);
    else if (tensor.dtype == "BF16")
      values[i] = std::bit_cast<float>(uint32_t{element<uint16_t>(tensor.data.data(), i)} << 16);
    else
      throw InputError(concat(file.origin(), ": tensor '", name, "' is ", tensor.dtype,
                              ", expected F32, F64 or BF16"));
    if (!std::isfinite(values[i]))
      throw InputError(concat(file.origin(), ": tensor '", name, "' is ", values[i], " at element ",
                              i, ", expected finite numbers"));
  }
  return values;
}

int64_t dimension(const SafeTensors& file, const std::string& name, size_t axis) {
  if (!file.contains(name))
    throw InputError(
        concat(file.origin(), ": tensor '", name, "' is missing: not weights of this U-Net"));
  const auto& shape = file.at(name).shape;
  if (axis >= shape.size())
    throw InputError(concat(file.origin(), ": tensor '", name, "' has shape ", shape_text(shape),
                            ", expected more dimensions"));
  return shape[axis];
}

int64_t integer(const SafeTensors& file, const std::string& key) {
  const std::string& text = file.metadata().at(key);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size())
    throw InputError(
        concat(file.origin(), ": metadata '", key, "' is '", text, "', expected a number"));
  return value;
}

}  // namespace

template <class T>
std::vector<T> to_file_order(FileLayout layout, const Shape& shape, const std::vector<T>& values) {
  std::vector<T> result(values.size());
  for_each_element(layout, shape,
                   [&](int64_t here, int64_t there) { result[there] = values[here]; });
  return result;
}

template <class T>
std::vector<T> from_file_order(FileLayout layout, const Shape& shape,
                               const std::vector<T>& values) {
  std::vector<T> result(values.size());
  for_each_element(layout, shape,
                   [&](int64_t here, int64_t there) { result[here] = values[there]; });
  return result;
}

template std::vector<float> to_file_order(FileLayout, const Shape&, const std::vector<float>&);
template std::vector<double> to_file_order(FileLayout, const Shape&, const std::vector<double>&);
template std::vector<float> from_file_order(FileLayout, const Shape&, const std::vector<float>&);
template std::vector<double> from_file_order(FileLayout, const Shape&, const std::vector<double>&);

std::map<std::string, std::string> metadata_of(const UNetConfig& config) {
  return {
      {"levels", std::to_string(config.levels)},     {"base", std::to_string(config.base)},
      {"channels", std::to_string(config.channels)}, {"groups", std::to_string(config.groups)},
      {"time_dim", std::to_string(config.time_dim)}, {"activation", name_of(config.activation)}};
}

UNetConfig config_of(const SafeTensors& file, const UNetConfig& defaults) {
  UNetConfig config = defaults;
  config.base = dimension(file, "init_conv.weight", 0);
  config.channels = dimension(file, "init_conv.weight", 1);
  config.time_dim = dimension(file, "time_embed.mlp.0.weight", 1);
  config.levels = 0;
  while (file.contains("down" + std::to_string(config.levels + 1) + "_proj.weight"))
    ++config.levels;
  if (config.levels == 0) dimension(file, "down1_proj.weight", 0);  // throws: it is missing
  const auto& metadata = file.metadata();
  if (metadata.contains("groups")) {
    config.groups = integer(file, "groups");
    if (config.groups < 1 || config.base % config.groups != 0)
      throw InputError(concat(file.origin(), ": metadata 'groups' is ", config.groups,
                              ", expected a divisor of the network's width ", config.base));
  }
  if (metadata.contains("activation")) {
    const std::string& activation = metadata.at("activation");
    if (activation != "gelu" && activation != "gelu-tanh" && activation != "relu")
      throw InputError(concat(file.origin(), ": metadata 'activation' is '", activation,
                              "', expected gelu, gelu-tanh or relu"));
    config.activation = activation_of(activation);
  }
  for (const auto& [key, value] : {std::pair{"levels", config.levels},
                                   {"base", config.base},
                                   {"channels", config.channels},
                                   {"time_dim", config.time_dim}})
    if (metadata.contains(key) && integer(file, key) != value)
      throw InputError(concat(file.origin(), ": metadata '", key, "' is ", metadata.at(key),
                              ", the tensors' shapes say ", value));
  try {
    config.check();
  } catch (const UsageError& error) {
    throw InputError(concat(file.origin(), ": ", error.what()));
  }
  // The network is made before its tensors are compared: its size must be that of the file.
  const int64_t top = config.base << config.levels, time = 4 * config.time_dim;
  expect_shape(file, "bottleneck.conv1.weight", {top, top, 3, 3});
  expect_shape(file, "time_embed.mlp.2.weight", {time, time});
  return config;
}

void save_weights(Stream& stream, const Parameters& parameters, const UNetConfig& config,
                  const std::filesystem::path& path) {
  std::vector<std::vector<float>> values;
  std::vector<SafeTensorEntry> entries;
  for (const Parameter& p : parameters.list()) {
    values.push_back(to_file_order(p.layout, p.var.shape(), p.master.to_vector<float>(stream)));
    const Shape shape = p.file_shape();
    entries.push_back({p.name,
                       DType::f32,
                       {shape.sizes().begin(), shape.sizes().end()},
                       std::as_bytes(std::span(values.back()))});
  }
  write_safetensors(path, std::move(entries), metadata_of(config));
}

void load_weights(Stream& stream, Parameters& parameters, const SafeTensors& file,
                  const std::string& prefix) {
  std::vector<std::vector<double>> all;
  for (const Parameter& p : parameters.list())
    all.push_back(from_file_order(p.layout, p.var.shape(),
                                  read_values(file, prefix + p.name, p.file_shape())));
  for (const std::string& name : file.names()) {
    if (!name.starts_with(prefix)) continue;
    const auto known =
        std::ranges::find(parameters.list(), name.substr(prefix.size()), &Parameter::name);
    if (known == parameters.list().end())
      throw InputError(concat(file.origin(), ": tensor '", name, "' is not part of this network"));
  }
  for (size_t i = 0; i < all.size(); ++i) {
    Tensor& value = parameters.list()[i].master;
    if (value.dtype() == DType::f64) {
      value.copy_from(stream, std::as_bytes(std::span(all[i])));
      continue;
    }
    const std::vector<float> rounded(all[i].begin(), all[i].end());
    value.copy_from(stream, std::as_bytes(std::span(rounded)));
  }
  parameters.refresh_copies(stream);
}

}  // namespace tessera
