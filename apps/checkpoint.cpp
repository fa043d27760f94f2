#include "apps/checkpoint.h"

#include <zlib.h>

#include <cmath>
#include <cstring>

namespace tessera {
namespace {

constexpr const char* kSchema = "3";

// FNV-1a over name, shape and place of every parameter.
std::string fingerprint(const Parameters& parameters) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const Parameter& p : parameters.list())
    for (const unsigned char c : concat(p.name, p.var.shape(), p.offset, '\n'))
      hash = (hash ^ c) * 0x100000001b3;
  for (const RunningStatistics& norm : parameters.running())
    for (const unsigned char c : concat(norm.name, norm.mean.shape(), norm.offset, '\n'))
      hash = (hash ^ c) * 0x100000001b3;
  return std::to_string(hash);
}

void expect_metadata(const SafeTensors& file, const std::string& key, const std::string& wanted) {
  const auto found = file.metadata().find(key);
  const std::string value = found == file.metadata().end() ? "missing" : found->second;
  if (value != wanted)
    throw InputError(
        concat(file.origin(), ": metadata '", key, "' is ", value, ", expected ", wanted));
}

// Throws unless the file was written with these settings and no others.
void expect_settings(const SafeTensors& file, const std::map<std::string, std::string>& settings) {
  for (const auto& [key, value] : settings) expect_metadata(file, key, value);
  for (const auto& [key, value] : file.metadata())
    if (!settings.contains(key) && key != "schema" && key != "network" && key != "images" &&
        key != "checksum")
      throw InputError(concat(file.origin(), ": metadata '", key, "' is ", value,
                              ", which is not what this run has"));
}

// The data of a tensor that must have this many elements of this type.
std::span<const std::byte> data_of(const SafeTensors& file, const std::string& name, DType dtype,
                                   int64_t count) {
  if (!file.contains(name))
    throw InputError(concat(file.origin(), ": tensor '", name, "' is missing"));
  const SafeTensor& tensor = file.at(name);
  if (tensor.dtype != safetensors_name(dtype) || tensor.shape != std::vector{count})
    throw InputError(concat(file.origin(), ": tensor '", name, "' is ", tensor.dtype, " with ",
                            tensor.data.size(), " bytes, expected ", safetensors_name(dtype), " [",
                            count, "]"));
  return tensor.data;
}

template <class T>
T scalar(const SafeTensors& file, const std::string& name) {
  T value;
  std::memcpy(&value, data_of(file, name, dtype_of<T>, 1).data(), sizeof value);
  return value;
}

// Throws when the file is not, bit for bit, what was written.
void expect_checksum(const SafeTensors& file) {
  std::map<std::string, SafeTensor> tensors;
  for (const std::string& name : file.names()) tensors[name] = file.at(name);
  const auto said = file.metadata().find("checksum");
  const std::string found = checksum_of(file.metadata(), tensors);
  if (said == file.metadata().end() || said->second != found)
    throw InputError(concat(file.origin(), ": damaged: its checksum is ",
                            said == file.metadata().end() ? "missing" : said->second,
                            ", that of its content ", found));
}

}  // namespace

std::string checksum_of(std::map<std::string, std::string> metadata,
                        const std::map<std::string, SafeTensor>& tensors) {
  uLong crc = 0;
  const auto add = [&crc](const void* data, size_t size) {
    crc = crc32_z(crc, static_cast<const Bytef*>(data), size);
  };
  const auto add_text = [&add](const std::string& text) {
    add(text.c_str(), text.size() + 1);  // the zero byte ends it
  };
  metadata.erase("checksum");
  for (const auto& [key, value] : metadata) {
    add_text(key);
    add_text(value);
  }
  for (const auto& [name, tensor] : tensors) {
    add_text(concat(name, ' ', tensor.dtype, ' ', shape_text(tensor.shape)));
    add(tensor.data.data(), tensor.data.size());
  }
  return std::to_string(crc);
}

void save_checkpoint(Stream& stream, const Parameters& parameters, const CheckpointState& state,
                     const std::filesystem::path& path) {
  std::vector<SafeTensorEntry> entries;
  std::vector<std::vector<float>> arenas;
  const auto add = [&](const char* name, const Tensor& arena) {
    arenas.push_back(arena.to_vector<float>(stream));
    entries.push_back({name, DType::f32, {arena.numel()}, std::as_bytes(std::span(arenas.back()))});
  };
  add("values", parameters.values);
  add("m", parameters.m);
  add("v", parameters.v);
  if (parameters.statistics) {
    add("statistics", parameters.statistics);
    entries.push_back(
        {"batches", DType::i64, {1}, std::as_bytes(std::span(&parameters.batches, 1))});
  }
  entries.push_back({"step", DType::i64, {1}, std::as_bytes(std::span(&state.step, 1))});
  entries.push_back(
      {"epoch_loss", DType::f64, {1}, std::as_bytes(std::span(&state.epoch_loss, 1))});
  std::map<std::string, std::string> metadata = state.settings;
  metadata["schema"] = std::string(kSchema);
  metadata["network"] = fingerprint(parameters);
  metadata["images"] = std::to_string(state.images);
  std::map<std::string, SafeTensor> tensors;
  for (const SafeTensorEntry& entry : entries)
    tensors[entry.name] = {safetensors_name(entry.dtype), entry.shape, entry.data};
  metadata["checksum"] = checksum_of(metadata, tensors);
  write_safetensors(path, std::move(entries), metadata);
}

CheckpointState load_checkpoint(Stream& stream, Parameters& parameters,
                                const std::filesystem::path& path, int64_t images,
                                const std::map<std::string, std::string>& settings) {
  const SafeTensors file = SafeTensors::read(path);
  expect_metadata(file, "schema", kSchema);
  expect_checksum(file);
  if (!settings.empty()) expect_settings(file, settings);
  expect_metadata(file, "network", fingerprint(parameters));
  expect_metadata(file, "images", std::to_string(images));
  const CheckpointState state{scalar<int64_t>(file, "step"), scalar<double>(file, "epoch_loss"),
                              images, settings};
  if (state.step < 0 || !std::isfinite(state.epoch_loss))
    throw InputError(concat(file.origin(), ": step ", state.step, " with epoch_loss ",
                            state.epoch_loss, ", expected a step from 0 and a finite number"));
  const int64_t size = parameters.values.numel();
  const auto values = data_of(file, "values", DType::f32, size);
  const auto m = data_of(file, "m", DType::f32, size), v = data_of(file, "v", DType::f32, size);
  if (Tensor& statistics = parameters.statistics) {
    const auto saved = data_of(file, "statistics", DType::f32, statistics.numel());
    parameters.batches = scalar<int64_t>(file, "batches");
    statistics.copy_from(stream, saved);
  }
  parameters.values.copy_from(stream, values);
  parameters.refresh_copies(stream);
  parameters.m.copy_from(stream, m);
  parameters.v.copy_from(stream, v);
  return state;
}

}  // namespace tessera
