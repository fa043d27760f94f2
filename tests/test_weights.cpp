// Weights in files: the round trip, PyTorch's layouts, and what is refused with which message.
#include <catch2/catch.hpp>

#include "core/file.h"
#include "layers/weights.h"
#include "tests/op_runner.h"
#include "tests/temp_dir.h"
#include "tests/train_case.h"
#include "tests/variants.h"

using namespace tessera;

namespace {

UNetConfig small() {
  UNetConfig config;
  config.levels = 1, config.base = 16, config.time_dim = 8;
  return config;
}

// A file of weights that tests rename, reshape and take apart.
struct Edited {
  struct Entry {
    DType dtype;
    std::vector<int64_t> shape;
    std::vector<std::byte> data;
  };
  std::map<std::string, Entry> tensors;
  std::map<std::string, std::string> metadata;

  explicit Edited(const std::filesystem::path& path) {
    const SafeTensors file = SafeTensors::read(path);
    metadata = file.metadata();
    for (const std::string& name : file.names()) {
      const SafeTensor& t = file.at(name);
      tensors[name] = {
          t.dtype == "I64" ? DType::i64 : DType::f32, t.shape, {t.data.begin(), t.data.end()}};
    }
  }
  void rename(const std::string& from, const std::string& to) {
    auto node = tensors.extract(from);
    node.key() = to;
    tensors.insert(std::move(node));
  }
  SafeTensors write(const std::filesystem::path& path) const {
    std::vector<SafeTensorEntry> entries;
    for (const auto& [name, t] : tensors) entries.push_back({name, t.dtype, t.shape, t.data});
    write_safetensors(path, std::move(entries), metadata);
    return SafeTensors::read(path);
  }
};

// A stream, a network, and its weights in a file.
struct Fixture {
  TempDir dir;
  Stream stream{Device::open(DeviceType::cpu, 2)};
  UNet net;
  std::filesystem::path path = dir / "model.safetensors";

  explicit Fixture(const UNetConfig& config = small()) : net(stream, config, 1) {
    save_weights(stream, net.parameters(), net.config(), path);
  }

  Edited edited() const { return Edited(path); }
  std::string load_error(const Edited& file, const std::string& prefix = "") {
    const std::vector<float> before = net.parameters().values.to_vector<float>(stream);
    const SafeTensors read = file.write(dir / "edited.safetensors");
    const std::string message =
        message_of<InputError>([&] { load_weights(stream, net.parameters(), read, prefix); });
    if (!message.empty())
      CHECK(net.parameters().values.to_vector<float>(stream) == before);  // nothing changed
    return message;
  }
  std::string expected(const std::string& message) const {
    return (dir / "edited.safetensors").string() + ": " + message;
  }
  std::string config_error(const Edited& file) const {
    const SafeTensors read = file.write(dir / "edited.safetensors");
    return message_of<InputError>([&] { config_of(read); });
  }
};

}  // namespace

TEST_CASE("weights survive saving and loading, to the byte", "[weights]") {
  Fixture f;
  UNet other(f.stream, small(), 2);
  CHECK(other.parameters().values.to_vector<float>(f.stream) !=
        f.net.parameters().values.to_vector<float>(f.stream));
  load_weights(f.stream, other.parameters(), SafeTensors::read(f.path));
  CHECK(other.parameters().values.to_vector<float>(f.stream) ==
        f.net.parameters().values.to_vector<float>(f.stream));
  save_weights(f.stream, other.parameters(), other.config(), f.dir / "again.safetensors");
  CHECK(read_text(f.dir / "again.safetensors") == read_text(f.path));
}

TEST_CASE("files hold PyTorch's shapes", "[weights]") {
  const Fixture f;
  const SafeTensors file = SafeTensors::read(f.path);
  const auto shape = [&](const std::string& name) { return file.at(name).shape; };
  CHECK(shape("init_conv.weight") == std::vector<int64_t>{16, 1, 3, 3});
  CHECK(shape("down1_proj.weight") == std::vector<int64_t>{32, 64, 1, 1});
  CHECK(shape("up1.res_block.conv1.weight") == std::vector<int64_t>{16, 48, 3, 3});
  CHECK(shape("up1.res_block.residual_conv.weight") == std::vector<int64_t>{16, 48, 1, 1});
  CHECK(shape("bottleneck.time_mlp.1.weight") == std::vector<int64_t>{32, 32});
  CHECK(shape("final_conv.0.bias") == std::vector<int64_t>{16});
  CHECK(file.metadata() == metadata_of(small()));
}

TEST_CASE(
    "file order is OIHW, IOHW for transposed filters, and c*4 + p1*2 + p2 for the rearranged "
    "projection",
    "[weights]") {
  // A filter [2,1,3,2]: K, R, S, C. In the file K, C, R, S.
  const std::vector<float> filter{0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15};
  const std::vector<float> oihw{0, 2, 4, 1, 3, 5, 10, 12, 14, 11, 13, 15};
  CHECK(to_file_order(FileLayout::Filter, {2, 1, 3, 2}, filter) == oihw);
  CHECK(from_file_order(FileLayout::Filter, {2, 1, 3, 2}, oihw) == filter);
  CHECK(to_file_order(FileLayout::Same, {12}, filter) == filter);
  // A transposed convolution's [1,2,2,3], C, R, S, K: in the file C, K, R, S.
  const std::vector<float> transposed{0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11},
      ckrs{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  CHECK(to_file_order(FileLayout::Transposed, {1, 2, 2, 3}, transposed) == ckrs);
  CHECK(from_file_order(FileLayout::Transposed, {1, 2, 2, 3}, ckrs) == transposed);

  // A projection [K,2,2,C] is the filter [K,1,1,4C] of a 1x1 convolution behind space_to_channel.
  Stream stream(poisoned_cpu());
  const Shape shape{5, 2, 2, 3}, file_shape{5, 1, 1, 12};
  const std::vector<double> in_file = normal("w", file_shape).data;
  const Values here{shape, from_file_order(FileLayout::Rearrange, shape, in_file)};
  CHECK(to_file_order(FileLayout::Rearrange, shape, here.data) == in_file);
  Tape tape(stream, Tape::Mode::Inference);
  const auto var = [&](const Values& values) {
    return Var::leaf(tensor_of(stream, values, DType::f64));
  };
  const Var x = var(normal("x", {2, 6, 4, 3}));
  const Var direct = ops::conv2d(tape, {2, 0, 0}, x, var(here), {});
  const Var rearranged =
      ops::conv2d(tape, {}, ops::space_to_channel(tape, x), var({file_shape, in_file}), {});
  CHECK(difference(values_of(stream, direct.value), values_of(stream, rearranged.value), 1e-14) ==
        "");
}

TEST_CASE("weights are found under a prefix", "[weights]") {
  Fixture f;
  Edited file = f.edited();
  for (const Parameter& p : f.net.parameters().list()) file.rename(p.name, "ema." + p.name);
  file.tensors["step"] = {DType::f32, {1}, std::vector<std::byte>(4)};
  CHECK(f.load_error(file, "ema.") == "");
  CHECK(f.load_error(file) == f.expected("tensor 'time_embed.mlp.0.weight' is missing"));
}

TEST_CASE("weights load from other floating-point types", "[weights]") {
  Fixture f;
  Edited file = f.edited();
  const size_t count = 16;
  std::vector<double> wide(count);
  std::vector<uint16_t> narrow(count);
  for (size_t i = 0; i < count; ++i) {
    wide[i] = 0.125 * double(i);
    narrow[i] = uint16_t(std::bit_cast<uint32_t>(0.5f * float(i)) >> 16);
  }
  const auto bytes = [](const auto& values) {
    const auto all = std::as_bytes(std::span(values));
    return std::vector<std::byte>(all.begin(), all.end());
  };
  file.tensors["init_conv.bias"] = {DType::f64, {16}, bytes(wide)};
  file.tensors["final_conv.0.bias"] = {DType::bf16, {16}, bytes(narrow)};
  CHECK(f.load_error(file) == "");
  for (const Parameter& p : f.net.parameters().list()) {
    if (p.name != "init_conv.bias" && p.name != "final_conv.0.bias") continue;
    const float unit = p.name == "init_conv.bias" ? 0.125f : 0.5f;
    const std::vector<float> values = p.var.value.to_vector<float>(f.stream);
    for (size_t i = 0; i < count; ++i) CHECK(values[i] == unit * float(i));
  }
}

TEST_CASE("weights that do not fit are refused", "[weights][errors]") {
  Fixture f;
  Edited file = f.edited();
  file.tensors.erase("bottleneck.norm1.bias");
  CHECK(f.load_error(file) == f.expected("tensor 'bottleneck.norm1.bias' is missing"));

  file = f.edited();
  file.tensors["down9_proj.weight"] = {DType::f32, {1}, std::vector<std::byte>(4)};
  CHECK(f.load_error(file) == f.expected("tensor 'down9_proj.weight' is not part of this network"));

  file = f.edited();
  file.tensors["init_conv.weight"].shape = {16, 3, 3, 1};
  CHECK(f.load_error(file) ==
        f.expected("tensor 'init_conv.weight' has shape [16,3,3,1], expected [16,1,3,3]"));

  file = f.edited();
  file.tensors["init_conv.bias"].dtype = DType::i32;
  CHECK(f.load_error(file) ==
        f.expected("tensor 'init_conv.bias' is I32, expected F32, F64 or BF16"));
}

TEST_CASE("a network in f64 writes its parameters as f32", "[weights]") {
  Fixture f;
  UNet net(f.stream, small(), 2, ops::Fusion::Off, Precision::f64());
  load_weights(f.stream, net.parameters(), SafeTensors::read(f.path));
  save_weights(f.stream, net.parameters(), net.config(), f.dir / "f64.safetensors");
  CHECK(read_file(f.dir / "f64.safetensors") == read_file(f.path));
}

TEST_CASE("a number that a float does not hold is refused", "[weights][errors]") {
  Fixture f;
  const std::string name = "bottleneck.conv1.bias";
  Edited file = f.edited();
  auto& entry = file.tensors[name];
  std::vector<double> values(size_t(entry.shape.at(0)), 1);
  const auto error = [&] {
    const auto bytes = std::as_bytes(std::span(values));
    entry.dtype = DType::f64, entry.data.assign(bytes.begin(), bytes.end());
    return f.load_error(file);
  };
  CHECK(error() == "");
  values[3] = 1e300;
  CHECK(error() ==
        f.expected("tensor '" + name + "' is 1e+300 at element 3, expected finite numbers"));
}

TEST_CASE("a network is known from its weights", "[weights]") {
  TempDir dir;
  Stream stream(Device::open(DeviceType::cpu, 2));
  UNetConfig config;
  config.levels = 3, config.base = 8, config.channels = 3, config.time_dim = 6, config.groups = 2;
  config.activation = Activation::GeluTanh;
  save_weights(stream, UNet(stream, config, 0).parameters(), config, dir / "w.safetensors");
  CHECK(config_of(SafeTensors::read(dir / "w.safetensors")) == config);

  // From PyTorch there is no metadata: groups and activation are the caller's.
  Edited file(dir / "w.safetensors");
  file.metadata.clear();
  const SafeTensors bare = file.write(dir / "bare.safetensors");
  UNetConfig defaults;
  CHECK(config_of(bare).groups == 8);
  CHECK(config_of(bare).activation == Activation::Gelu);
  defaults.groups = 2, defaults.activation = Activation::GeluTanh;
  CHECK(config_of(bare, defaults) == config);
}

TEST_CASE("every variant is known from its weights, with or without metadata", "[weights]") {
  TempDir dir;
  Stream stream(Device::open(DeviceType::cpu, 2));
  for (const Variant& variant : variants()) {
    INFO(text_of(variant));
    UNetConfig config = small();
    for (const auto& [name, value] : variant) unet_option(name).set(config, value);
    save_weights(stream, UNet(stream, config, 0).parameters(), config, dir / "w.safetensors");
    CHECK(config_of(SafeTensors::read(dir / "w.safetensors")) == config);
    CHECK(SafeTensors::read(dir / "w.safetensors").metadata() == metadata_of(config));
    // What the metadata says is not overruled by what a caller expects of files that say nothing.
    UNetConfig other = small();
    other.groups = 2, other.no_time_gelu = !config.no_time_gelu;
    CHECK(config_of(SafeTensors::read(dir / "w.safetensors"), other) == config);
    Edited file(dir / "w.safetensors");
    file.metadata.clear();
    CHECK(config_of(file.write(dir / "bare.safetensors"), config) == config);
  }
  CHECK(metadata_of(small()).size() == 6);  // files of the default network are as they always were
}

TEST_CASE("running statistics that do not fit are refused", "[weights][errors]") {
  const auto batch = [] {
    UNetConfig config = small();
    config.norm = NormKind::Batch;
    return config;
  };
  Fixture f(batch());
  const auto error = [&](auto change) {
    Edited file = f.edited();
    change(file.tensors);
    return f.load_error(file);
  };
  const std::string norm = "bottleneck.norm1.";
  CHECK(error([](auto&) {}) == "");
  CHECK(error([&](auto& t) { t.erase(norm + "running_mean"); }) ==
        f.expected("tensor 'bottleneck.norm1.running_mean' is missing"));
  CHECK(error([&](auto& t) { t.erase(norm + "num_batches_tracked"); }) ==
        f.expected("tensor 'bottleneck.norm1.num_batches_tracked' is missing"));
  CHECK(error([&](auto& t) { t[norm + "num_batches_tracked"].dtype = DType::f64; }) ==
        f.expected("tensor 'bottleneck.norm1.num_batches_tracked' is F64, expected I64"));
  CHECK(error([&](auto& t) { t[norm + "num_batches_tracked"].shape = {1}; }) ==
        f.expected("tensor 'bottleneck.norm1.num_batches_tracked' has shape [1], expected []"));
  CHECK(error([&](auto& t) { t[norm + "num_batches_tracked"].data[7] = std::byte{0xff}; }) ==
        f.expected("tensor 'bottleneck.norm1.num_batches_tracked' is -72057594037927936, expected "
                   "0 or more"));
  CHECK(error([&](auto& t) { t[norm + "running_var"].data[3] = std::byte{0xbf}; }) ==
        f.expected("tensor 'bottleneck.norm1.running_var' holds -1, expected variances"));

  Fixture group;
  Edited file = group.edited();
  file.tensors["bottleneck.norm1.running_mean"] = f.edited().tensors[norm + "running_mean"];
  CHECK(group.load_error(file) ==
        group.expected("tensor 'bottleneck.norm1.running_mean' is not part of this network"));
}

TEST_CASE("metadata that contradicts a variant's tensors is refused", "[weights][errors]") {
  const auto error = [](const Variant& variant, const std::string& key, const std::string& value) {
    UNetConfig config = small();
    for (const auto& [name, text] : variant) unet_option(name).set(config, text);
    const Fixture f(config);
    Edited file = f.edited();
    file.metadata[key] = value;
    const std::string message = f.config_error(file), start = f.expected("");
    CHECK(message.starts_with(start));
    return message.substr(std::min(message.size(), start.size()));
  };
  CHECK(error({}, "down", "conv") == "metadata 'down' is conv, the tensors' shapes say rearrange");
  CHECK(error({{"down", "conv"}}, "down", "max") ==
        "metadata 'down' is max, the tensors' shapes say conv");
  CHECK(error({{"down", "avg"}}, "down", "rearrange") ==
        "metadata 'down' is rearrange, the tensors' shapes say max");
  CHECK(error({}, "up", "transposed") ==
        "metadata 'up' is transposed, the tensors' shapes say nearest");
  CHECK(error({}, "norm", "batch") == "metadata 'norm' is batch, the tensors' shapes say group");
  CHECK(error({{"norm", "batch"}}, "norm", "layer") ==
        "metadata 'norm' is layer, the tensors' shapes say batch");
  CHECK(error({}, "no_skips", "true") ==
        "metadata 'no_skips' is true, the tensors' shapes say false");
  CHECK(error({}, "no_skips", "yes") == "metadata 'no_skips' is 'yes', expected false or true");
  CHECK(error({}, "norm", "none") ==
        "metadata 'norm' is 'none', expected group, batch, layer or instance");

  // Of a maximum and an average only somebody can say which it was.
  UNetConfig config = small();
  config.down = Down::Average;
  const Fixture f(config);
  Edited file = f.edited();
  file.metadata.clear();
  CHECK(f.config_error(file) ==
        f.expected("tensor 'down1_proj.weight' is that of a 2x2 pool: --down max or --down avg has "
                   "to say of which"));
}

TEST_CASE("weights of no such network are refused", "[weights][errors]") {
  const Fixture f;
  const auto with = [&](const std::string& key, const std::string& value) {
    Edited file = f.edited();
    file.metadata[key] = value;
    return f.config_error(file);
  };
  CHECK(f.config_error(f.edited()) == "");
  CHECK(with("base", "64") == f.expected("metadata 'base' is 64, the tensors' shapes say 16"));
  CHECK(with("levels", "3") == f.expected("metadata 'levels' is 3, the tensors' shapes say 1"));
  CHECK(with("groups", "many") == f.expected("metadata 'groups' is 'many', expected a number"));
  for (const char* groups : {"5", "0", "-4", "32", "-9223372036854775808"})
    CHECK(with("groups", groups) ==
          f.expected(concat("metadata 'groups' is ", groups,
                            ", expected a divisor of the network's width 16")));
  CHECK(with("activation", "swish") ==
        f.expected("metadata 'activation' is 'swish', expected gelu, gelu-tanh or relu"));

  Edited file = f.edited();
  file.tensors.erase("init_conv.weight");
  CHECK(f.config_error(file) ==
        f.expected("tensor 'init_conv.weight' is missing: not weights of this U-Net"));
  file = f.edited();
  file.tensors["init_conv.weight"].shape = {144};
  CHECK(f.config_error(file) ==
        f.expected("tensor 'init_conv.weight' has shape [144], expected more dimensions"));
  file = f.edited();
  file.metadata.clear();
  file.tensors["init_conv.weight"] = {DType::f32, {int64_t{1} << 62, 0, 3, 3}, {}};
  CHECK(f.config_error(file) == f.expected("--base is 4611686018427387904, expected 1 to 4096"));
  file = f.edited();
  file.metadata.clear();
  file.tensors.erase("down1_proj.weight");
  CHECK(f.config_error(file) ==
        f.expected("tensor 'down1_proj.weight' is missing: not weights of this U-Net"));
  file = f.edited();
  file.metadata.clear();
  for (int level = 2; level <= 6; ++level)  // names that promise a network the file does not hold
    file.tensors[concat("down", level, "_proj.weight")] = {DType::f32, {0}, {}};
  CHECK(f.config_error(file).find("tensor 'bottleneck.conv1.weight' has shape [32,32,3,3]") !=
        std::string::npos);
}

TEST_CASE("weights that promise a wide embedding", "[weights][errors]") {
  const TempDir dir;
  Stream stream(Device::open(DeviceType::cpu, 1));
  UNet net(stream, tiny_options().network(), 1);
  save_weights(stream, net.parameters(), net.config(), dir / "w");
  const SafeTensors file = SafeTensors::read(dir / "w");
  std::vector<SafeTensorEntry> entries;
  for (const auto& name : file.names()) {
    const SafeTensor& t = file.at(name);
    if (name == "time_embed.mlp.0.weight")
      entries.push_back({name, DType::f32, {0, 4096}, {}});
    else
      entries.push_back({name, DType::f32, t.shape, t.data});
  }
  write_safetensors(dir / "x", entries);
  const SafeTensors x = SafeTensors::read(dir / "x");
  CHECK_THAT(message_of<InputError>([&] { config_of(x, tiny_options().network()); }),
             Catch::EndsWith(
                 "tensor 'time_embed.mlp.2.weight' has shape [32,32], expected [16384,16384]"));
}
