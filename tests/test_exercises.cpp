// The five exercises of the lesson's U-Net notebook, as tests.
#include <catch2/catch.hpp>
#include <cmath>

#include "core/rng.h"
#include "layers/unet.h"
#include "tests/op_runner.h"
#include "tests/unet_stages.h"

using namespace tessera;

namespace {

Var normal_leaf(Stream& stream, const std::string& name, const Shape& shape, bool wanted = false) {
  return Var::leaf(tensor_of(stream, normal(name, shape), DType::f32), wanted);
}

const Var& parameter(const Parameters& parameters, const std::string& name) {
  for (const Parameter& p : parameters.list())
    if (p.name == name) return p.var;
  throw Error("no parameter " + name);
}

}  // namespace

TEST_CASE("exercise 1: a block adds the time term by broadcast after the first norm",
          "[exercises]") {
  Stream stream(poisoned_cpu());
  // With one channel a group, what is added to a channel before the norm would vanish in it.
  const int groups = 16;
  Parameters parameters;
  LinearStack times(Scope(parameters) / "times", 12);
  const ResidualBlock block(Scope(parameters) / "block", 8, 16, times, {{groups}});
  parameters.allocate(stream, Precision::f32(), 3);
  const auto p = [&](const std::string& name) { return parameter(parameters, "block." + name); };

  const Var x = normal_leaf(stream, "x", {2, 6, 4, 8});
  Tape tape(stream, Tape::Mode::Inference);
  const auto forward = [&](const Var& time) {
    return values_of(stream, block.forward(tape, x, times.forward(tape, time)).value);
  };
  // The same in plain operations, with the time term after the norm, or before it.
  const auto by_hand = [&](const Var& time, bool after) {
    const Var t = ops::linear(tape, time, p("time_mlp.1.weight"), p("time_mlp.1.bias"));
    Var h = ops::conv2d(tape, {1, 1, 1}, x, p("conv1.weight"), p("conv1.bias"));
    if (!after) h = ops::add_broadcast(tape, h, t);
    h = ops::group_norm(tape, {groups}, h, p("norm1.weight"), p("norm1.bias"));
    if (after) h = ops::add_broadcast(tape, h, t);
    h = ops::activation(tape, Activation::Gelu, h);
    h = ops::conv2d(tape, {1, 1, 1}, h, p("conv2.weight"), p("conv2.bias"));
    h = ops::group_norm(tape, {groups}, h, p("norm2.weight"), p("norm2.bias"));
    h = ops::activation(tape, Activation::Gelu, h);
    const Var shortcut =
        ops::conv2d(tape, {}, x, p("residual_conv.weight"), p("residual_conv.bias"));
    return values_of(stream, ops::add(tape, h, shortcut).value);
  };
  const Var time = normal_leaf(stream, "time", {2, 12}), other = normal_leaf(stream, "o", {2, 12});
  CHECK(difference(forward(time), by_hand(time, true), 1e-5) == "");
  CHECK(difference(forward(time), by_hand(time, false), 1e-3) != "");
  CHECK(difference(forward(time), forward(other), 1e-3) != "");
  CHECK(difference(by_hand(time, false), by_hand(other, false), 1e-4) == "");
}

namespace {

constexpr int64_t kSide = 16, kBatch = 8, kBase = 16, kTimeDim = 16;

struct Batch {
  Tensor clean, noisy, t;
};

// Grids of squares with sides of 1 to 3 pixels, shifted at random, and noise of sigma t/2000.
Batch make_batch(Stream& stream, uint32_t number) {
  const int64_t pixels = kSide * kSide;
  std::vector<float> clean, noisy;
  std::vector<int32_t> t;
  for (uint32_t n = 0; n < kBatch; ++n) {
    const RngKey key{9, number, n, Purpose::noise};
    const Random4 r = random4(key, 1 << 20);
    const int64_t size = 1 + r[0] % 3, dx = r[1] % 6, dy = r[2] % 6;
    t.push_back(int32_t(uniform_below(r[3], 1000)));
    for (int64_t i = 0; i < pixels; ++i) {
      const bool on = ((i / kSide + dy) / size + (i % kSide + dx) / size) % 2;
      clean.push_back(on ? 0.8f : -0.8f);
      noisy.push_back(clean.back() +
                      sigma_of(t.back(), 0.5f) * normal4(key, uint32_t(i / 4))[size_t(i % 4)]);
    }
  }
  const Shape shape{kBatch, kSide, kSide, 1};
  return {Tensor::from<float>(stream, shape, clean), Tensor::from<float>(stream, shape, noisy),
          Tensor::from<int32_t>(stream, {kBatch}, t)};
}

// Mean absolute difference of pixels side by side: what blurring takes away.
double sharpness(Stream& stream, const Tensor& images) {
  const std::vector<float> x = images.to_vector<float>(stream);
  double sum = 0;
  for (size_t i = 0; i + 1 < x.size(); ++i)
    if ((i + 1) % kSide) sum += std::abs(x[i + 1] - x[i]);
  return sum / double(x.size());
}

struct Outcome {
  double loss;       // mean of the last 20 steps
  double sharpness;  // of outputs for a new batch, as a share of the clean images'
};

Outcome train(Stream& stream, const UNetConfig& config) {
  UNet net(stream, config, 1);
  Parameters& parameters = net.parameters();
  parameters.prepare_training(stream);
  AdamSpec spec;
  spec.lr = 1e-3;
  Adam adam(stream, parameters, spec);
  constexpr uint32_t kSteps = 60, kLast = 20;
  double loss = 0;
  for (uint32_t step = 0; step < kSteps; ++step) {
    const Batch batch = make_batch(stream, step);
    parameters.clear_gradients();
    Tape tape(stream);
    const Var mse = ops::mse(tape, net.forward(tape, Var::leaf(batch.noisy), batch.t), batch.clean);
    tape.backward(mse);
    parameters.finish_gradients(stream);
    adam.update();
    if (step >= kSteps - kLast) loss += mse.value.to_vector<float>(stream)[0] / kLast;
  }
  const Batch batch = make_batch(stream, kSteps);
  Tape tape(stream, Tape::Mode::Inference);
  const Var out = net.forward(tape, Var::leaf(batch.noisy), batch.t);
  REQUIRE(out.shape() == batch.clean.shape());
  return {loss, sharpness(stream, out.value) / sharpness(stream, batch.clean)};
}

}  // namespace

TEST_CASE("exercise 2: without skips the loss is higher and outputs blur, with no shape error",
          "[exercises][slow]") {
  Stream stream(Device::open(DeviceType::cpu, 2));
  UNetConfig config;
  config.levels = 2, config.base = kBase, config.time_dim = kTimeDim;
  const Outcome with_skips = train(stream, config);
  config.no_skips = true;
  const Outcome blurred = train(stream, config);
  INFO("loss " << with_skips.loss << " with skips, " << blurred.loss << " without; sharpness "
               << with_skips.sharpness << " and " << blurred.sharpness);
  CHECK(with_skips.loss > 0);
  CHECK(blurred.loss > 1.5 * with_skips.loss);
  CHECK(blurred.sharpness < with_skips.sharpness);
}

TEST_CASE("exercise 3: the shapes of the two-level network", "[exercises]") {
  Stream stream(poisoned_cpu());
  UNetConfig config;
  config.levels = 2, config.base = 32;
  const std::map<std::string, Shape> expected{
      {"init_conv", {32, 32}},  {"down1 skip", {32, 32}}, {"down1 rearranged", {128, 16}},
      {"down1_proj", {64, 16}}, {"down2 skip", {64, 16}}, {"down2 rearranged", {256, 8}},
      {"down2_proj", {128, 8}}, {"bottleneck", {128, 8}}, {"up2 joined", {192, 16}},
      {"up2", {64, 16}},        {"up1 joined", {96, 32}}, {"up1", {32, 32}}};
  CHECK(stage_shapes(stream, config, 32) == expected);

  const UNet net(stream, config, 0);
  Tape tape(stream, Tape::Mode::Inference);
  const Var out = net.forward(tape, normal_leaf(stream, "x", {3, 32, 32, 1}),
                              Tensor::zeros(stream, {3}, DType::i32));
  CHECK(out.shape() == Shape{3, 32, 32, 1});
}

TEST_CASE("exercise 4: embedding values", "[exercises]") {
  Stream stream(poisoned_cpu());
  Tape tape(stream, Tape::Mode::Inference);
  const auto embed = [&](const std::vector<int32_t>& t, int64_t dim) {
    const Tensor steps = Tensor::from<int32_t>(stream, {int64_t(t.size())}, t);
    return ops::timestep_embedding(tape, steps, dim).value.to_vector<float>(stream);
  };
  // Frequencies 1 and 0.01; sines first, then cosines.
  const std::vector<double> known{0,           0,           1,           1,             // t = 0
                                  0.84147098,  0.00999983,  0.54030231,  0.99995000,    // t = 1
                                  -0.54402111, 0.09983342,  -0.83907153, 0.99500417,    // t = 10
                                  -0.02646075, -0.53560333, 0.99964985,  -0.84446970};  // t = 999
  const std::vector<float> got = embed({0, 1, 10, 999}, 4);
  REQUIRE(got.size() == known.size());
  for (size_t i = 0; i < known.size(); ++i) {
    INFO("value " << i);
    CHECK(std::abs(got[i] - known[i]) < 1e-6);
  }

  const std::vector<float> wide = embed({0, 1, 500, 999}, 128);
  for (size_t n = 0; n < 4; ++n)
    for (size_t i = 0; i < 64; ++i) {
      const double angle = std::vector<int>{0, 1, 500, 999}[n] * std::pow(10000.0, -double(i) / 64);
      INFO("row " << n << ", frequency " << i);
      CHECK(std::abs(wide[n * 128 + i] - std::sin(angle)) < 1e-6);
      CHECK(std::abs(wide[n * 128 + 64 + i] - std::cos(angle)) < 1e-6);
    }
}

TEST_CASE("exercise 5: the skip is used, and outputs differ between inputs", "[exercises]") {
  Stream stream(poisoned_cpu());
  for (ops::Fusion fusion : {ops::Fusion::On, ops::Fusion::Off}) {
    INFO((fusion == ops::Fusion::On ? "fused" : "composed"));
    Parameters parameters;
    LinearStack times(Scope(parameters) / "times", 12);
    const UpBlock block(Scope(parameters) / "up1", 16, 8, 8, times,
                        {{4}, Activation::Gelu, fusion});
    parameters.allocate(stream, Precision::f32(), 5);
    const Var x = normal_leaf(stream, "x", {2, 4, 4, 16}, true);
    const Var skip = normal_leaf(stream, "skip", {2, 8, 8, 8}, true);
    const Var time = normal_leaf(stream, "time", {2, 12});
    Tape tape(stream);
    const Var y = block.forward(tape, x, skip, times.forward(tape, time));
    tape.backward_from(y, normal_leaf(stream, "dy", {2, 8, 8, 8}).value);
    // Not one element of the skip, or of the upsampled input, is without influence.
    for (const Var& input : {skip, x}) {
      const std::vector<float> gradient = input.grad().to_vector<float>(stream);
      CHECK(std::ranges::count(gradient, 0.0f) == 0);
    }
    const Var other = normal_leaf(stream, "other skip", {2, 8, 8, 8});
    Tape inference(stream, Tape::Mode::Inference);
    const Var changed = block.forward(inference, x, other, times.forward(inference, time));
    CHECK(difference(values_of(stream, changed.value), values_of(stream, y.value), 1e-2) != "");
  }

  UNetConfig config;
  config.levels = 2, config.base = 16, config.time_dim = 16;
  const UNet net(stream, config, 7);
  Tape tape(stream, Tape::Mode::Inference);
  const auto output = [&](const std::string& name, int32_t t) {
    const Tensor steps = Tensor::from<int32_t>(stream, {1}, std::vector<int32_t>{t});
    return values_of(stream,
                     net.forward(tape, normal_leaf(stream, name, {1, 16, 16, 1}), steps).value);
  };
  CHECK(difference(output("a", 100), output("a", 100), 0) == "");
  CHECK(difference(output("a", 100), output("b", 100), 1e-2) != "");
  CHECK(difference(output("a", 100), output("a", 900), 1e-3) != "");
}
