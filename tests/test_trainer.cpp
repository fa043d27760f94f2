// Training steps: reproducible to the bit, resumable in the middle of an epoch, without new memory
// after the first, and stopped by what is not finite before it does harm.
#include "apps/trainer.h"

#include <catch2/catch.hpp>
#include <limits>
#include <utility>

#include "apps/checkpoint.h"
#include "kernels/cpu/onednn.h"
#include "tests/train_case.h"

using namespace tessera;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
const Schedule kSchedule{21, 4, 14};  // 6 steps an epoch, the last of one image

// Trains from the step after the trainer's to `last`; returns the losses.
std::vector<double> train(Trainer& trainer, int64_t last, uint64_t seed) {
  Loader loader(kSchedule, seed, 64, tiny_image, trainer.steps_done() + 1);
  std::vector<double> losses;
  Batch batch;
  while (trainer.steps_done() < last) {
    loader.next(batch);
    losses.push_back(trainer.step(batch));
  }
  return losses;
}

Parameter& parameter(Trainer& trainer, const std::string& name) {
  for (Parameter& p : trainer.model().parameters().list())
    if (p.name == name) return p;
  throw Error("no parameter " + name);
}

void fill(Trainer& trainer, const std::string& name, float value) {
  Tensor& tensor = parameter(trainer, name).var.value;
  std::fill_n(tensor.data<float>(), tensor.numel(), value);
}

// The tensor that the next step stops at; nothing must have changed.
std::string stopped_at(Stream& stream, Trainer& trainer, std::string& message) {
  const std::string before = state_of(stream, trainer);
  const int64_t steps = trainer.steps_done();
  std::string tensor;
  try {
    trainer.step(tiny_batch(4));
  } catch (const NonFiniteError& error) {
    message = error.what();
    tensor = error.tensor;
  }
  CHECK(state_of(stream, trainer) == before);
  CHECK(trainer.steps_done() == steps);
  return tensor;
}

}  // namespace

TEST_CASE("the same seed gives the same bits, another one does not", "[trainer]") {
  Stream stream(Device::open(DeviceType::cpu, 2));
  for (const char* precision : {"f32", "bf16"}) {
    Trainer a(stream, options_in(precision)), b(stream, options_in(precision)),
        c(stream, options_in(precision, "2"));
    CHECK(train(a, 10, 1) == train(b, 10, 1));
    CHECK(state_of(stream, a) == state_of(stream, b));
    CHECK(train(c, 10, 2) != train(a, 14, 1));
    CHECK(state_of(stream, a) != state_of(stream, c));
  }
}

TEST_CASE("a run resumed after any step ends with the bits of the uninterrupted one",
          "[trainer][slow]") {
  TempDir dir;
  Stream stream(Device::open(DeviceType::cpu, 2));
  const std::string precision = GENERATE("f32", "bf16");
  Trainer whole(stream, options_in(precision));
  const std::vector<double> losses = train(whole, 14, 1);
  for (const int64_t stop : {1, 4, 6, 7, 13}) {
    Trainer first(stream, options_in(precision));
    train(first, stop, 1);
    save_checkpoint(stream, first.model().parameters(), {stop, 0, 21}, dir / "c");

    Trainer second(stream, options_in(precision));
    load_checkpoint(stream, second.model().parameters(), dir / "c", 21);
    second.set_steps_done(stop);
    CHECK(train(second, 14, 1) == std::vector(losses.begin() + stop, losses.end()));
    CHECK(state_of(stream, second) == state_of(stream, whole));
  }
}

TEST_CASE("training lowers the loss", "[trainer][slow]") {
  Stream stream(Device::open(DeviceType::cpu, 2));
  Trainer trainer(stream, options_in(GENERATE("f32", "bf16")));
  const Batch batch = tiny_batch(4);
  const double first = trainer.step(batch);
  double last = first;
  for (int i = 0; i < 100; ++i) last = trainer.step(batch);
  CHECK(last < 0.2 * first);
}

TEST_CASE("after the first step no memory is taken and no primitive made", "[trainer]") {
  const auto device = Device::open(DeviceType::cpu, 2);
  Stream stream(device);
  Trainer trainer(stream, options_in(GENERATE("f32", "bf16")));
  const auto primitives = [&] { return stream.state<cpu::OneDnn>().primitives(); };
  trainer.step(tiny_batch(4));
  const int64_t misses = device->pool()->misses(), made = primitives();
  CHECK(made > 0);
  for (uint32_t epoch = 1; epoch < 4; ++epoch) {
    trainer.step(tiny_batch(4, epoch));
    CHECK(device->pool()->misses() == misses);
    CHECK(primitives() == made);
  }
}

TEST_CASE("a step uses no value that it did not write", "[trainer]") {
  const auto device = Device::open(DeviceType::cpu, 2);
  Stream stream(device), plain(Device::open(DeviceType::cpu, 2));
  device->pool()->set_poison(true);
  const TrainOptions options = options_in(GENERATE("f32", "bf16"));
  Trainer poisoned(stream, options), trainer(plain, options);
  CHECK(train(poisoned, 7, 1) == train(trainer, 7, 1));
  CHECK(state_of(stream, poisoned) == state_of(plain, trainer));
}

TEST_CASE("a NaN in any parameter stops before the update and is named", "[trainer]") {
  Stream stream(Device::open(DeviceType::cpu, 1));
  const auto names = [&] {
    Trainer trainer(stream, tiny_options());
    std::vector<std::string> result;
    for (const Parameter& p : trainer.model().parameters().list()) result.push_back(p.name);
    return result;
  }();
  for (const std::string& name : names) {
    Trainer trainer(stream, tiny_options());
    trainer.step(tiny_batch(4));
    trainer.step(tiny_batch(4));
    Tensor& value = parameter(trainer, name).var.value;
    value.data<float>()[value.numel() - 1] = kNaN;
    std::string message;
    CHECK(stopped_at(stream, trainer, message) == name);
    CHECK_THAT(message, Catch::StartsWith("stopped before the update of step 3: '" + name + "' "));
    CHECK(message.find('\n') == std::string::npos);
  }
}

TEST_CASE("of two broken parameters the first in forward order is named", "[trainer]") {
  Stream stream(Device::open(DeviceType::cpu, 1));
  Trainer trainer(stream, tiny_options());
  fill(trainer, "final_conv.2.bias", kNaN);
  fill(trainer, "down1_proj.weight", kNaN);
  std::string message;
  CHECK(stopped_at(stream, trainer, message) == "down1_proj.weight");
}

TEST_CASE("an overflow in the forward pass names the value, not a parameter", "[trainer]") {
  Stream stream(Device::open(DeviceType::cpu, 1));
  Trainer trainer(stream, tiny_options());
  fill(trainer, "init_conv.weight", 3e38f);
  fill(trainer, "init_conv.bias", 3e38f);
  std::string message;
  CHECK(stopped_at(stream, trainer, message) == "init_conv.conv2d");
}

TEST_CASE("a gradient that overflows stops before the update and is named", "[trainer]") {
  Stream stream(Device::open(DeviceType::cpu, 1));
  Trainer trainer(stream, tiny_options());
  // The last norm gives 0 and so does the GELU behind it: whatever the last filter is, the output
  // is its bias. But the way back multiplies by the filter.
  fill(trainer, "final_conv.0.weight", 0);
  fill(trainer, "final_conv.0.bias", 0);
  fill(trainer, "final_conv.2.bias", 30);
  fill(trainer, "final_conv.2.weight", 3e38f);
  std::string message;
  CHECK(stopped_at(stream, trainer, message) == "gradient of up1.res_block.residual_block");
  CHECK_THAT(message, Catch::StartsWith("stopped before the update of step 1: "));
}

TEST_CASE("the noise of training goes by its level and by the seed", "[trainer]") {
  Stream stream(Device::open(DeviceType::cpu, 1));
  const auto first_loss = [&](const std::string& seed, const std::string& level) {
    Trainer drawn(stream, tiny_options("1")),
        trainer(stream, tiny_options(seed, {{"noise-level", level}}));
    const auto values = drawn.model().parameters().values.to_vector<float>(stream);
    trainer.model().parameters().values.copy_from(stream, std::as_bytes(std::span(values)));
    return trainer.step(tiny_batch(4));
  };
  CHECK(first_loss("1", "0.5") == first_loss("1", "0.5"));
  CHECK(first_loss("1", "0.5") != first_loss("1", "0.6"));
  CHECK(first_loss("1", "0.5") != first_loss("2", "0.5"));
}

TEST_CASE("without fusion a block's values have names", "[trainer]") {
  Stream stream(Device::open(DeviceType::cpu, 1));
  for (const auto& [fusion, name] :
       {std::pair("on", "down1.res_block.residual_block"), {"off", "down1.res_block.conv2d"}}) {
    Trainer trainer(stream, tiny_options("1", {{"fusion", fusion}}));
    for (Parameter& p : trainer.model().parameters().list())
      if (p.name == "down1.res_block.conv1.weight") fill(stream, p.master, 3e38f);
    CHECK_THAT(message_of<NonFiniteError>([&] { trainer.step(tiny_batch(4)); }),
               Catch::Contains(concat("'", name, "'")));
  }
}

TEST_CASE("a NaN in the first element of any parameter is named", "[trainer]") {
  Stream stream(Device::open(DeviceType::cpu, 1));
  Trainer trainer(stream, tiny_options());
  trainer.step(tiny_batch(4));
  for (Parameter& p : trainer.model().parameters().list()) {
    float& value = p.master.data<float>()[0];
    const float before = std::exchange(value, std::numeric_limits<float>::quiet_NaN());
    CHECK_THAT(message_of<NonFiniteError>([&] { trainer.step(tiny_batch(4)); }),
               Catch::StartsWith("stopped before the update of step 2: '" + p.name + "' "));
    value = before;
  }
}

TEST_CASE("training goes on after a NaN was taken away", "[trainer]") {
  Stream stream(Device::open(DeviceType::cpu, 1));
  const TrainOptions options = tiny_options("1", {{"norm", "batch"}});
  Trainer trainer(stream, options);
  for (int i = 0; i < 2; ++i) trainer.step(tiny_batch(4));
  Parameters& parameters = trainer.model().parameters();
  float& value = parameters.list()[4].master.data<float>()[0];
  const float before = std::exchange(value, std::numeric_limits<float>::quiet_NaN());
  trainer.enqueue(tiny_batch(4)), trainer.enqueue(tiny_batch(4));
  CHECK_THROWS_AS(trainer.wait(), NonFiniteError);
  CHECK(parameters.batches == 2);
  value = before;
  if (Tensor& s = parameters.statistics) fill(stream, s, 1);
  const auto values = parameters.values.to_vector<float>(stream);
  trainer.step(tiny_batch(4));
  CHECK(trainer.steps_done() == 3);
  CHECK(parameters.batches == 3);
  CHECK(parameters.values.to_vector<float>(stream) != values);
}

TEST_CASE("of several steps the first that went wrong is looked at, with its batch", "[trainer]") {
  Stream stream(Device::open(DeviceType::cpu, 1));
  Trainer trainer(stream, tiny_options());
  for (Parameter& p : trainer.model().parameters().list())
    if (p.name == "init_conv.weight" || p.name == "init_conv.bias") fill(stream, p.master, 3e38f);
  for (int64_t n : {3, 4, 2}) trainer.enqueue(tiny_batch(n));
  CHECK_THAT(
      message_of<NonFiniteError>([&] { trainer.wait(); }),
      Catch::StartsWith("stopped before the update of step 1: 'init_conv.conv2d' [3,8,8,8] "));
}
