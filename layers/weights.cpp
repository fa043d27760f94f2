#include "layers/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

namespace tessera {
namespace {

// What a BatchNorm keeps, behind its name; the last is a whole number.
constexpr const char *kMean = ".running_mean", *kVar = ".running_var",
                     *kBatches = ".num_batches_tracked";

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

// As doubles; what is not finite as `dtype` is refused.
std::vector<double> read_values(const SafeTensors& file, const std::string& name,
                                const Shape& shape, DType dtype) {
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
    if (!std::isfinite(dtype == DType::f64 ? values[i] : double(float(values[i]))))
      throw InputError(concat(file.origin(), ": tensor '", name, "' is ", values[i], " at element ",
                              i, ", expected finite numbers"));
  }
  return values;
}

// A whole number from 0, of no dimension.
int64_t read_count(const SafeTensors& file, const std::string& name) {
  const SafeTensor& tensor = expect_shape(file, name, Shape{});
  if (tensor.dtype != "I64")
    throw InputError(
        concat(file.origin(), ": tensor '", name, "' is ", tensor.dtype, ", expected I64"));
  const auto count = element<int64_t>(tensor.data.data(), 0);
  if (count < 0)
    throw InputError(
        concat(file.origin(), ": tensor '", name, "' is ", count, ", expected 0 or more"));
  return count;
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

// "no-skips" -> "no_skips".
std::string key_of(const UNetOption& option) {
  std::string key = option.name;
  std::ranges::replace(key, '-', '_');
  return key;
}

// Sets what the metadata says.
void read_metadata(const SafeTensors& file, UNetConfig& config) {
  for (const UNetOption& option : unet_options()) {
    const auto said = file.metadata().find(key_of(option));
    if (said == file.metadata().end()) continue;
    const auto& [key, text] = *said;
    if (!option.takes(text))
      throw InputError(concat(file.origin(), ": metadata '", key, "' is '", text, "', expected ",
                              option.values.empty() ? "a number" : joined(option.values)));
    option.set(config, text);
  }
}

// How the network halves sides, by its first projection: [2C,4C,1,1] behind rearrange, [2C,C,R,R]
// else. A maximum and an average have the same tensors: `said` has to be one of them.
Down down_in(const SafeTensors& file, Down said) {
  const std::string name = "down1_proj.weight";
  if (dimension(file, name, 1) > dimension(file, name, 0)) return Down::Rearrange;
  if (dimension(file, name, 2) == 3) return Down::Convolution;
  if (said == Down::Max || said == Down::Average || file.metadata().contains("down"))
    return said == Down::Average ? said : Down::Max;
  throw InputError(concat(file.origin(), ": tensor '", name,
                          "' is that of a 2x2 pool: --down max or --down avg has to say of which"));
}

// Sets what names and shapes say.
void read_tensors(const SafeTensors& file, UNetConfig& config) {
  config.base = dimension(file, "init_conv.weight", 0);
  config.channels = dimension(file, "init_conv.weight", 1);
  config.time_dim = dimension(file, "time_embed.mlp.0.weight", 1);
  config.levels = 0;
  while (file.contains("down" + std::to_string(config.levels + 1) + "_proj.weight"))
    ++config.levels;
  if (config.levels == 0) dimension(file, "down1_proj.weight", 0);  // throws: it is missing
  config.down = down_in(file, config.down);
  config.up = file.contains("up1.upsample.weight") ? Up::Transposed : Up::Nearest;
  if (file.contains("final_conv.0.running_mean"))
    config.norm = NormKind::Batch;
  else if (config.norm == NormKind::Batch)
    config.norm = NormKind::Group;
  // [C,3C,3,3] with the skip, [C,2C,3,3] without.
  const std::string joined = "up1.res_block.conv1.weight";
  config.no_skips = dimension(file, joined, 1) / 2 == dimension(file, joined, 0) &&
                    dimension(file, joined, 1) % 2 == 0;
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
  std::map<std::string, std::string> metadata;
  for (const UNetOption& option : unet_options())
    if (option.is_said(config)) metadata[key_of(option)] = option.get(config);
  return metadata;
}

bool has_own_metadata(const SafeTensors& file) { return file.metadata().contains("activation"); }

UNetConfig config_of(const SafeTensors& file, const UNetConfig& defaults) {
  UNetConfig said = has_own_metadata(file) ? UNetConfig{} : defaults;
  read_metadata(file, said);
  UNetConfig config = said;
  read_tensors(file, config);
  for (const UNetOption& option : unet_options())
    if (file.metadata().contains(key_of(option)) && option.get(config) != option.get(said))
      throw InputError(concat(file.origin(), ": metadata '", key_of(option), "' is ",
                              option.get(said), ", the tensors' shapes say ", option.get(config)));
  if (config.norm == NormKind::Group && file.metadata().contains("groups") &&
      (config.groups < 1 || config.base % config.groups != 0))
    throw InputError(concat(file.origin(), ": metadata 'groups' is ", config.groups,
                            ", expected a divisor of the network's width ", config.base));
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

namespace {

std::vector<float> floats_of(Stream& stream, const Tensor& tensor) {
  if (tensor.dtype() != DType::f64) return tensor.to_vector<float>(stream);
  const std::vector<double> values = tensor.to_vector<double>(stream);
  for (const double value : values)
    ENSURE(!std::isinf(float(value)), "no float holds ", value, ", of a parameter ",
           tensor.shape());
  return {values.begin(), values.end()};
}

}  // namespace

void save_weights(Stream& stream, const Parameters& parameters, const UNetConfig& config,
                  const std::filesystem::path& path) {
  std::vector<std::vector<float>> values;
  std::vector<SafeTensorEntry> entries;
  const auto add = [&](const std::string& name, const Shape& shape, std::vector<float> data) {
    values.push_back(std::move(data));
    entries.push_back({name,
                       DType::f32,
                       {shape.sizes().begin(), shape.sizes().end()},
                       std::as_bytes(std::span(values.back()))});
  };
  for (const Parameter& p : parameters.list())
    add(p.name, p.file_shape(),
        to_file_order(p.layout, p.var.shape(), floats_of(stream, p.master)));
  for (const RunningStatistics& norm : parameters.running()) {
    add(norm.name + kMean, norm.mean.shape(), floats_of(stream, norm.mean));
    add(norm.name + kVar, norm.var.shape(), floats_of(stream, norm.var));
    entries.push_back(
        {norm.name + kBatches, DType::i64, {}, std::as_bytes(std::span(&parameters.batches, 1))});
  }
  write_safetensors(path, std::move(entries), metadata_of(config));
}

void load_weights(Stream& stream, Parameters& parameters, const SafeTensors& file,
                  const std::string& prefix) {
  std::vector<std::pair<Tensor, std::vector<double>>> all;  // where it goes, what it becomes
  std::set<std::string> known;
  const auto read = [&](const std::string& name, const Shape& shape, const Tensor& to) {
    known.insert(name);
    all.emplace_back(to, read_values(file, name, shape, to.dtype()));
    return std::span(all.back().second);
  };
  for (const Parameter& p : parameters.list()) {
    read(prefix + p.name, p.file_shape(), p.master);
    all.back().second = from_file_order(p.layout, p.var.shape(), all.back().second);
  }
  int64_t batches = 0;
  for (const RunningStatistics& norm : parameters.running()) {
    const std::string name = prefix + norm.name;
    read(name + kMean, norm.mean.shape(), norm.mean);
    for (const double value : read(name + kVar, norm.var.shape(), norm.var))
      if (value < 0)
        throw InputError(concat(file.origin(), ": tensor '", name, kVar, "' holds ", value,
                                ", expected variances"));
    known.insert(name + kBatches);
    batches = read_count(file, name + kBatches);
  }
  for (const std::string& name : file.names())
    if (name.starts_with(prefix) && !known.contains(name))
      throw InputError(concat(file.origin(), ": tensor '", name, "' is not part of this network"));
  for (auto& [to, values] : all) {
    const std::vector<float> rounded(values.begin(), values.end());
    to.copy_from(stream, to.dtype() == DType::f64 ? std::as_bytes(std::span(values))
                                                  : std::as_bytes(std::span(rounded)));
  }
  parameters.batches = batches;
  parameters.refresh_copies(stream);
}

}  // namespace tessera
