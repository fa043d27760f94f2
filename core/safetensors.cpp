// Reads and writes safetensors. Nothing in a file is believed: all sizes are compared with the
// file's length, products are checked for overflow, and the tensors must tile the data exactly.
#include "core/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
#include <utility>

#include "core/check.h"
#include "core/file.h"

namespace tessera {
namespace {

using json = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the file's data is little-endian");

constexpr size_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr const char* kMetadataKey = "__metadata__";

// Bytes of an element; 0 if the dtype is not known.
uint64_t element_bytes(const std::string& dtype) {
  static const std::map<std::string, uint64_t> kSizes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"I64", 8}, {"U64", 8},     {"F64", 8}};
  const auto found = kSizes.find(dtype);
  return found == kSizes.end() ? 0 : found->second;
}

// What stands in messages for text from a file: printable, on one line and not too long.
std::string clipped(std::string text) {
  constexpr size_t kLongest = 200;
  return text.size() <= kLongest ? text : text.substr(0, kLongest) + "...";
}

std::string quoted(const std::string& name) {
  return json(clipped(name)).dump(-1, ' ', true, json::error_handler_t::replace);
}

std::string shown(const std::vector<int64_t>& numbers) { return clipped(json(numbers).dump()); }

// Parses JSON, refusing what the format forbids and the library would let pass: a key given twice
// (the last would win) and, so that memory stays bounded, objects nested deeper than a tensor's.
json parse_header(std::span<const std::byte> text, const std::string& origin) {
  constexpr int kDeepest = 3;
  std::vector<std::set<std::string>> keys(kDeepest + 1);  // of the open object at each depth
  const auto check = [&](int depth, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start || event == json::parse_event_t::array_start) {
      if (depth >= kDeepest) throw InputError(concat(origin, ": header is nested too deeply"));
      keys[depth + 1].clear();
    } else if (event == json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!keys[depth].insert(key).second) {
        throw InputError(concat(origin, ": header has the key ", quoted(key), " twice"));
      }
    }
    return true;
  };
  const char* begin = reinterpret_cast<const char*>(text.data());
  const std::string invalid = concat(origin, ": header is not valid JSON");
  // A zero byte is no JSON, but the library would stop there and ignore the rest.
  if (std::find(text.begin(), text.end(), std::byte{0}) != text.end()) throw InputError(invalid);
  try {
    return json::parse(begin, begin + text.size(), check);
  } catch (const json::exception&) {
    throw InputError(invalid);
  }
}

std::map<std::string, std::string> parse_metadata(const json& object, const std::string& origin) {
  if (!object.is_object()) {
    throw InputError(concat(origin, ": ", kMetadataKey, " is not an object"));
  }
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : object.items()) {
    if (!value.is_string()) {
      throw InputError(
          concat(origin, ": ", kMetadataKey, " entry ", quoted(key), " is not a string"));
    }
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

struct Extent {
  uint64_t begin, end;  // bytes, relative to the data
};

// An array of non-negative integers below 2^63. Larger ones and 1.0 arrive as other JSON types.
std::vector<int64_t> parse_integers(const json& object, const char* field,
                                    const std::string& where) {
  const auto found = object.find(field);
  if (found == object.end()) throw InputError(concat(where, " has no ", field));
  const auto valid = [](const json& value) {
    return value.is_number_unsigned() && value.get<uint64_t>() <= INT64_MAX;
  };
  if (!found->is_array() || !std::all_of(found->begin(), found->end(), valid)) {
    throw InputError(concat(where, ": ", field, " is not an array of integers from 0 to 2^63 - 1"));
  }
  return found->get<std::vector<int64_t>>();
}

// One tensor of the header, its bytes checked against dtype, shape and the data's length.
std::pair<SafeTensor, Extent> parse_tensor(const json& object, uint64_t data_bytes,
                                           const std::string& where) {
  if (!object.is_object()) throw InputError(concat(where, " is not an object"));
  SafeTensor tensor;
  const auto dtype = object.find("dtype");
  if (dtype == object.end() || !dtype->is_string()) {
    throw InputError(concat(where, " has no dtype"));
  }
  tensor.dtype = dtype->get<std::string>();
  uint64_t bytes = element_bytes(tensor.dtype);
  if (bytes == 0) throw InputError(concat(where, " has unknown dtype ", quoted(tensor.dtype)));

  tensor.shape = parse_integers(object, "shape", where);
  // A zero makes the product zero, wherever it stands: [2^62, 2^62, 0] is legal and empty.
  const bool empty = std::find(tensor.shape.begin(), tensor.shape.end(), 0) != tensor.shape.end();
  if (empty) bytes = 0;
  for (const int64_t extent : tensor.shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(extent), &bytes)) {
      throw InputError(concat(where, ": shape ", shown(tensor.shape), " overflows 64 bits"));
    }
  }

  const std::vector<int64_t> offsets = parse_integers(object, "data_offsets", where);
  if (offsets.size() != 2) {
    throw InputError(concat(where, ": data_offsets has ", offsets.size(), " numbers, expected 2"));
  }
  const Extent extent{static_cast<uint64_t>(offsets[0]), static_cast<uint64_t>(offsets[1])};
  if (extent.begin > extent.end || extent.end > data_bytes) {
    throw InputError(concat(where, ": data_offsets ", shown(offsets), " do not lie in the ",
                            data_bytes, " bytes of data"));
  }
  if (extent.end - extent.begin != bytes) {
    throw InputError(concat(where, ": ", tensor.dtype, " ", shown(tensor.shape), " needs ", bytes,
                            " bytes, data_offsets ", shown(offsets), " have ",
                            extent.end - extent.begin));
  }
  return {std::move(tensor), extent};
}

// The tensors must follow each other from the first byte of the data to its last.
void check_tiling(std::vector<std::tuple<uint64_t, uint64_t, std::string>> extents,
                  uint64_t data_bytes, const std::string& origin) {
  std::sort(extents.begin(), extents.end());
  uint64_t next = 0;
  for (const auto& [begin, end, name] : extents) {
    if (begin != next) {
      throw InputError(concat(origin, ": tensor ", quoted(name), " begins at byte ", begin,
                              " of the data, expected ", next,
                              begin < next ? " (overlap)" : " (hole)"));
    }
    next = end;
  }
  if (next != data_bytes) {
    throw InputError(
        concat(origin, ": the tensors end at byte ", next, " of ", data_bytes, " bytes of data"));
  }
}

// The bytes of the header, after its length was compared with the file's.
std::span<const std::byte> find_header(std::span<const std::byte> content,
                                       const std::string& origin) {
  if (content.size() < kLengthBytes) {
    throw InputError(concat(origin, ": not a safetensors file: it is ", content.size(),
                            " bytes long, its header's length alone takes ", kLengthBytes));
  }
  uint64_t length = 0;
  std::memcpy(&length, content.data(), kLengthBytes);
  content = content.subspan(kLengthBytes);
  if (length > kMaxHeaderBytes) {
    throw InputError(concat(origin, ": not a safetensors file: header of ", length,
                            " bytes, at most ", kMaxHeaderBytes, " are allowed"));
  }
  if (length > content.size()) {
    throw InputError(concat(origin, ": truncated: header of ", length, " bytes, ", content.size(),
                            " are there"));
  }
  if (length == 0 || content[0] != std::byte{'{'}) {
    throw InputError(
        concat(origin, ": not a safetensors file: its header does not begin with '{'"));
  }
  return content.first(length);
}

}  // namespace

SafeTensors SafeTensors::read(const std::filesystem::path& path) {
  return parse(read_file(path), path.string());
}

SafeTensors SafeTensors::parse(std::vector<std::byte> content, std::string origin) {
  SafeTensors file;
  file.origin_ = std::move(origin);
  file.content_ = std::move(content);
  const std::span<const std::byte> text = find_header(file.content_, file.origin_);
  const auto data = std::span<const std::byte>(file.content_).subspan(kLengthBytes + text.size());

  std::vector<std::tuple<uint64_t, uint64_t, std::string>> extents;
  const json header = parse_header(text, file.origin_);
  for (const auto& [name, object] : header.items()) {
    if (name == kMetadataKey) {
      file.metadata_ = parse_metadata(object, file.origin_);
      continue;
    }
    const std::string where = concat(file.origin_, ": tensor ", quoted(name));
    auto [tensor, extent] = parse_tensor(object, data.size(), where);
    tensor.data = data.subspan(extent.begin, extent.end - extent.begin);
    extents.emplace_back(extent.begin, extent.end, name);
    file.tensors_.emplace(name, std::move(tensor));
  }
  check_tiling(std::move(extents), data.size(), file.origin_);
  return file;
}

std::vector<std::string> SafeTensors::names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  return names;
}

const SafeTensor& SafeTensors::at(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw InputError(concat(origin_, ": no tensor ", quoted(name)));
  return found->second;
}

std::string shape_text(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? "," : "") + std::to_string(shape[i]);
  return text + "]";
}

const char* safetensors_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "F32";
    case DType::bf16:
      return "BF16";
    case DType::f64:
      return "F64";
    case DType::u8:
      return "U8";
    case DType::i32:
      return "I32";
    case DType::i64:
      return "I64";
  }
  throw Error("no such DType");
}

void write_safetensors(const std::filesystem::path& path, std::vector<SafeTensorEntry> entries,
                       const std::map<std::string, std::string>& metadata) {
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    const size_t size_a = size_of(a.dtype), size_b = size_of(b.dtype);
    return size_a != size_b ? size_a > size_b : a.name < b.name;
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  uint64_t offset = 0;
  for (const SafeTensorEntry& entry : entries) {
    uint64_t bytes = size_of(entry.dtype);
    for (const int64_t extent : entry.shape) bytes *= static_cast<uint64_t>(extent);
    ENSURE(bytes == entry.data.size(), entry.name, ": the shape needs ", bytes, " bytes, not ",
           entry.data.size());
    ENSURE(entry.name != kMetadataKey && !header.contains(entry.name), "tensor ", entry.name);
    header[entry.name] = {{"dtype", safetensors_name(entry.dtype)},
                          {"shape", entry.shape},
                          {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text = header.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  ENSURE(text.size() <= kMaxHeaderBytes, "header of ", text.size(), " bytes");

  atomic_write(path, [&](FileWriter& out) {
    const uint64_t length = text.size();
    out.write(&length, kLengthBytes);
    out.write(text.data(), text.size());
    for (const SafeTensorEntry& entry : entries) out.write(entry.data.data(), entry.data.size());
  });
}

}  // namespace tessera
