// The U-Net: its size, names and shapes, fused against composed, and what a training step takes
// from the system and repeats to the bit.
#include <catch2/catch.hpp>
#include <set>

#include "kernels/cpu/onednn.h"
#include "layers/weights.h"
#include "tests/golden_file.h"
#include "tests/paths.h"
#include "tests/temp_dir.h"
#include "tests/unet_stages.h"

using namespace tessera;
using Catch::Contains;

namespace {

UNetConfig small() {
  UNetConfig config;
  config.levels = 2, config.base = 16, config.time_dim = 16;
  return config;
}

std::set<std::string> names_of(const Parameters& parameters) {
  std::set<std::string> names;
  for (const Parameter& p : parameters.list()) names.insert(p.name);
  return names;
}

// The names of the specification, for three levels.
std::set<std::string> specified_names() {
  std::set<std::string> names;
  const auto add = [&](const std::string& layer) {
    names.insert(layer + ".weight");
    names.insert(layer + ".bias");
  };
  const auto add_block = [&](const std::string& block, bool shortcut) {
    for (const char* layer : {"conv1", "norm1", "conv2", "norm2", "time_mlp.1"})
      add(block + "." + layer);
    if (shortcut) add(block + ".residual_conv");
  };
  for (const char* layer : {"time_embed.mlp.0", "time_embed.mlp.2", "init_conv", "down1_proj",
                            "down2_proj", "down3_proj", "final_conv.0", "final_conv.2"})
    add(layer);
  for (const char* level : {"1", "2", "3"}) {
    add_block(std::string("down") + level + ".res_block", false);
    add_block(std::string("up") + level + ".res_block", true);
  }
  add_block("bottleneck", false);
  return names;
}

// One forward and backward of the mean squared error on drawn images.
struct Pass {
  Values out;
  std::map<std::string, Values> gradients;
};

Pass pass(Stream& stream, UNet& net, const Shape& image, DType dtype) {
  if (!net.parameters().grads) net.parameters().prepare_training(stream);
  net.parameters().clear_gradients();
  Tape tape(stream);
  const std::vector<int32_t> t{7, 500, 999};
  const Tensor steps =
      Tensor::from<int32_t>(stream, {image[0]}, std::span(t).first(size_t(image[0])));
  const Var x = Var::leaf(tensor_of(stream, normal("x", image), dtype));
  const Var out = net.forward(tape, x, steps);
  tape.backward(ops::mse(tape, out, tensor_of(stream, normal("clean", image), dtype)));
  Pass result{values_of(stream, out.value), {}};
  for (const Parameter& p : net.parameters().list())
    result.gradients[p.name] = values_of(stream, p.var.grad());
  return result;
}

}  // namespace

TEST_CASE("the network has the size of the specification", "[unet]") {
  Stream stream(Device::open(DeviceType::cpu, 2));
  const auto count = [&](UNetConfig config) {
    return UNet(stream, config, 0).parameters().count();
  };
  UNetConfig config;
  CHECK(UNet(stream, config, 0).parameters().list().size() == 92);
  CHECK(count(config) == 11371265);
  config.channels = 3;
  CHECK(count(config) == 11372547);
  config.channels = 1, config.base = 32, config.levels = 2;
  CHECK(count(config) == 1123201);
}

TEST_CASE("parameters have PyTorch's names", "[unet]") {
  Stream stream(Device::open(DeviceType::cpu, 2));
  UNet net(stream, {}, 0);
  CHECK(names_of(net.parameters()) == specified_names());

  // The same as in a golden file of two levels.
  const GoldenFile golden(std::filesystem::path(test_dir()) /
                          "golden/data/unet/c1_b16_l2_s16_g8_t16.safetensors");
  std::set<std::string> golden_names;
  for (const std::string& name : golden.file().names())
    if (name.starts_with("param.")) golden_names.insert(name.substr(6));
  CHECK(names_of(UNet(stream, small(), 0).parameters()) == golden_names);
}

TEST_CASE("every stage has the shape of the specification", "[unet]") {
  Stream stream(poisoned_cpu());
  const std::map<std::string, Shape> expected{
      {"init_conv", {64, 64}},   {"down1 skip", {64, 64}},  {"down1 rearranged", {256, 32}},
      {"down1_proj", {128, 32}}, {"down2 skip", {128, 32}}, {"down2 rearranged", {512, 16}},
      {"down2_proj", {256, 16}}, {"down3 skip", {256, 16}}, {"down3 rearranged", {1024, 8}},
      {"down3_proj", {512, 8}},  {"bottleneck", {512, 8}},  {"up3 joined", {768, 16}},
      {"up3", {256, 16}},        {"up2 joined", {384, 32}}, {"up2", {128, 32}},
      {"up1 joined", {192, 64}}, {"up1", {64, 64}}};
  CHECK(stage_shapes(stream, {}, 64) == expected);
}

TEST_CASE("an image in, an image of the same shape out", "[unet]") {
  Stream stream(poisoned_cpu());
  UNetConfig config = small();
  for (int64_t channels : {1, 3}) {
    config.channels = channels;
    const UNet net(stream, config, 0);
    for (const Shape& shape : {Shape{1, 4, 4, channels},
                               {2, 8, 20, channels},
                               {3, 16, 16, channels},
                               {0, 8, 8, channels}}) {
      Tape tape(stream, Tape::Mode::Inference);
      const Var x = Var::leaf(tensor_of(stream, normal("x", shape), DType::f32));
      const Var out = net.forward(tape, x, Tensor::zeros(stream, {shape[0]}, DType::i32));
      CHECK(out.shape() == shape);
      CHECK(find_non_finite(stream, out.value) == -1);
    }
  }
}

TEST_CASE("the same seed draws the same parameters", "[unet]") {
  Stream stream(Device::open(DeviceType::cpu, 2));
  const auto values = [&](uint64_t seed) {
    return UNet(stream, small(), seed).parameters().values.to_vector<float>(stream);
  };
  CHECK(values(1) == values(1));
  CHECK(values(1) != values(2));

  // PyTorch's defaults: uniform up to 1/sqrt(fan_in); norms start at 1 and 0.
  UNet net(stream, small(), 1);
  for (const Parameter& p : net.parameters().list()) {
    INFO(p.name);
    const bool norm =
        p.name.find("norm") != std::string::npos || p.name.starts_with("final_conv.0");
    const std::vector<float> v = p.var.value.to_vector<float>(stream);
    const auto [low, high] = std::ranges::minmax(v);
    if (norm) {
      CHECK(low == high);
      CHECK(low == (p.name.ends_with("weight") ? 1.0f : 0.0f));
      continue;
    }
    if (!p.name.ends_with("weight")) continue;
    const float bound = 1 / std::sqrt(float(v.size()) / float(p.var.shape()[0]));
    CHECK(high <= bound);
    CHECK(low >= -bound);
    CHECK(high - low > 1.5f * bound);
  }
}

TEST_CASE("the fused network equals the composed one", "[unet][fused]") {
  Stream stream(poisoned_cpu());
  const Shape image{3, 8, 12, 1};
  for (DType dtype : {DType::f64, DType::f32}) {
    INFO(name_of(dtype));
    const Precision precision = dtype == DType::f64 ? Precision::f64() : Precision::f32();
    UNet on(stream, small(), 4, ops::Fusion::On, precision);
    UNet off(stream, small(), 4, ops::Fusion::Off, precision);
    const Pass fused = pass(stream, on, image, dtype), composed = pass(stream, off, image, dtype);
    const double tolerance = dtype == DType::f64 ? 1e-10 : 1e-4;
    double squares = 0;
    for (const auto& [name, gradient] : composed.gradients) squares += std::pow(norm(gradient), 2);
    CHECK(distance(fused.out, composed.out) <= 0.1 * tolerance * norm(composed.out));
    for (const auto& [name, gradient] : composed.gradients) {
      INFO(name);
      CHECK(distance(fused.gradients.at(name), gradient) <=
            tolerance * std::max(norm(gradient), 1e-3 * std::sqrt(squares)));
    }
  }
}

namespace {

// Trains `steps` steps on drawn batches. Calls after(step) after each.
template <class After>
void train(Stream& stream, UNet& net, int steps, After after) {
  net.parameters().prepare_training(stream);
  Adam adam(stream, net.parameters(), {});
  for (int step = 0; step < steps; ++step) {
    pass(stream, net, {3, 16, 16, 1}, DType::f32);
    net.parameters().finish_gradients(stream);
    adam.update();
    after(step);
  }
}

}  // namespace

TEST_CASE("a network takes no memory and makes no primitive after its first step", "[unet]") {
  for (ops::Fusion fusion : {ops::Fusion::On, ops::Fusion::Off}) {
    Stream stream(Device::open(DeviceType::cpu, 2));
    UNet net(stream, small(), 0, fusion);
    int64_t misses = 0, primitives = 0;
    size_t peak = 0;
    train(stream, net, 4, [&](int step) {
      const Pool& pool = *stream.device().pool();
      const int64_t made = stream.state<cpu::OneDnn>().primitives();
      if (step == 0) misses = pool.misses(), primitives = made, peak = pool.peak_bytes();
      INFO("step " << step + 1);
      CHECK(misses > 0);
      CHECK(primitives > 0);
      CHECK(pool.misses() == misses);
      CHECK(pool.peak_bytes() == peak);
      CHECK(made == primitives);
    });
  }
}

TEST_CASE("a network out of range is refused by the flag's name", "[unet][errors]") {
  const auto error = [](auto change) {
    UNetConfig config;
    change(config);
    return message_of<UsageError>([&] { config.check(); });
  };
  CHECK(error([](UNetConfig&) {}) == "");
  CHECK(error([](UNetConfig& c) { c.levels = 0; }) == "--levels is 0, expected 1 to 8");
  CHECK(error([](UNetConfig& c) { c.base = -3; }) == "--base is -3, expected 1 to 4096");
  CHECK(error([](UNetConfig& c) { c.base = 12; }) == "--base 12 is not a multiple of --groups 8");
  CHECK(error([](UNetConfig& c) { c.channels = 2; }) ==
        "--channels is 2, expected 1 (grey) or 3 (colour)");
  CHECK(error([](UNetConfig& c) { c.time_dim = 7; }) == "--time-dim is 7, expected an even number");
  CHECK(message_of<UsageError>([] { UNetConfig().check_image(64, 60); }) ==
        "image size 64x60 does not fit 3 levels: expected positive multiples of 8");
  CHECK(message_of<UsageError>([] { UNetConfig().check_image(0, 8); }) != "");
}
