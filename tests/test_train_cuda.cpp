// Whole training steps through the CUDA kernels: on the host model always, on a GPU when there is
// one. They follow the CPU, give the same bits every time, and stop at what is not finite.
#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <limits>

#include "apps/checkpoint.h"
#include "core/safetensors.h"
#include "core/simt/options.h"
#include "tests/op_runner.h"
#include "tests/run_program.h"
#include "tests/train_case.h"

using namespace tessera;

namespace {

const Schedule kSchedule{21, 4, 20};  // 6 steps an epoch, the last of one image

void read_image(int64_t i, uint8_t* out) {
  for (int at = 0; at < 64; ++at) out[at] = uint8_t((i * 37 + at * at * 5) % 256);
}

// The data set of read_image() on the device.
Tensor images_on(Stream& stream) {
  std::vector<uint8_t> pixels(21 * 64);
  for (int64_t i = 0; i < 21; ++i) read_image(i, pixels.data() + i * 64);
  return Tensor::from<uint8_t>(stream, {21, 8, 8, 1}, pixels);
}

TrainOptions options_in(const std::string& precision) {
  TrainOptions options = tiny_options();
  options.precision = precision;
  return options;
}

// Trains to step `last`, looking at the losses every `every` steps; returns them.
std::vector<double> train(Trainer& trainer, int64_t last, int64_t every = 1) {
  Loader loader(kSchedule, 1, 64, read_image, trainer.steps_done() + 1);
  std::vector<double> losses;
  Batch batch;
  while (trainer.steps_done() < last) {
    loader.next(batch);
    trainer.enqueue(batch);
    if (trainer.steps_done() % every != 0 && trainer.steps_done() < last) continue;
    for (double loss : trainer.wait()) losses.push_back(loss);
  }
  return losses;
}

std::vector<DeviceType> cuda_devices() {
  std::vector<DeviceType> types{DeviceType::simt};
  if (has_gpu()) types.push_back(DeviceType::cuda);
  return types;
}

}  // namespace

TEST_CASE("training in f32 on CUDA follows the CPU's losses", "[trainer][cuda]") {
  Stream cpu(Device::open(DeviceType::cpu, 2));
  Trainer reference(cpu, options_in("f32"));
  const std::vector<double> expected = train(reference, 20);
  for (DeviceType type : cuda_devices()) {
    Stream stream(poisoned(type));
    Trainer trainer(stream, options_in("f32"), images_on(stream));
    const std::vector<double> losses = train(trainer, 20, 7);
    REQUIRE(losses.size() == expected.size());
    for (size_t i = 0; i < losses.size(); ++i) {
      INFO(name_of(type) << " step " << i + 1);
      CHECK(std::abs(losses[i] - expected[i]) <= 1e-4 * expected[i]);
    }
  }
}

TEST_CASE("training in bf16 and tf32 on CUDA stays near the CPU's losses", "[trainer][cuda]") {
  Stream cpu(Device::open(DeviceType::cpu, 2));
  Trainer reference(cpu, options_in("f32"));
  const std::vector<double> expected = train(reference, 20);
  for (DeviceType type : cuda_devices())
    for (const char* precision : {"tf32", "bf16"}) {
      Stream stream(poisoned(type));
      Trainer trainer(stream, options_in(precision), images_on(stream));
      const std::vector<double> losses = train(trainer, 20, 20);
      for (size_t i = 0; i < losses.size(); ++i) {
        INFO(name_of(type) << ' ' << precision << " step " << i + 1);
        CHECK(std::abs(losses[i] - expected[i]) <= 2e-2 * expected[i]);
      }
    }
}

TEST_CASE("a CUDA run has the same bits in any order of blocks and threads", "[trainer][cuda]") {
  const simt::ScopedOptions restore(simt::options());
  const auto run = [](const char* precision, simt::Order order, uint64_t seed, bool resident) {
    simt::options().order = order;
    simt::options().seed = seed;
    simt::options().landing =
        order == simt::Order::Random ? simt::Landing::Random : simt::Landing::Latest;
    Stream stream(poisoned(DeviceType::simt));
    Trainer trainer(stream, options_in(precision), resident ? images_on(stream) : Tensor{});
    train(trainer, 7, 3);
    return state_of(stream, trainer);
  };
  for (const char* precision : {"f32", "bf16"}) {
    INFO(precision);
    const std::string expected = run(precision, simt::Order::Ascending, 0, true);
    CHECK(run(precision, simt::Order::Descending, 0, true) == expected);
    CHECK(run(precision, simt::Order::Random, 1, true) == expected);
    CHECK(run(precision, simt::Order::Random, 2, false) == expected);
  }
}

TEST_CASE("a CUDA run resumed after any step has the bits of the uninterrupted one",
          "[trainer][cuda]") {
  const TempDir dir;
  Stream stream(Device::open(DeviceType::simt, 2));
  Trainer whole(stream, options_in("bf16"));
  train(whole, 8, 3);
  for (const int64_t stop : {1, 6}) {
    Trainer first(stream, options_in("bf16")), second(stream, options_in("bf16"));
    train(first, stop);
    save_checkpoint(stream, first.model().parameters(), {stop, 0, 21}, dir / "c");
    load_checkpoint(stream, second.model().parameters(), dir / "c", 21);
    second.set_steps_done(stop);
    train(second, 8);
    CHECK(state_of(stream, second) == state_of(stream, whole));
  }
}

TEST_CASE("after the first step a CUDA step takes no memory", "[trainer][cuda]") {
  for (DeviceType type : cuda_devices()) {
    const auto device = Device::open(type, 2);
    Stream stream(device);
    Trainer trainer(stream, options_in("bf16"));
    trainer.step(tiny_batch(4));
    const int64_t misses = device->pool()->misses();
    for (uint32_t epoch = 1; epoch < 4; ++epoch) trainer.step(tiny_batch(4, epoch));
    CHECK(device->pool()->misses() == misses);
  }
}

TEST_CASE("a NaN on a CUDA device stops before its update, however late it is seen",
          "[trainer][cuda]") {
  for (DeviceType type : cuda_devices())
    for (const char* precision : {"f32", "bf16"}) {
      INFO(name_of(type) << ' ' << precision);
      Stream stream(Device::open(type, 2));
      Trainer trainer(stream, options_in(precision));
      trainer.step(tiny_batch(4));
      for (Parameter& p : trainer.model().parameters().list())
        if (p.name == "down1.res_block.conv2.weight") {
          std::vector<float> values = p.master.to_vector<float>(stream);
          values.back() = std::numeric_limits<float>::quiet_NaN();
          p.master.copy_from(stream, std::as_bytes(std::span(values)));
        }
      trainer.model().parameters().refresh_copies(stream);
      const std::string before = state_of(stream, trainer);
      for (uint32_t epoch = 1; epoch < 5; ++epoch) trainer.enqueue(tiny_batch(4, epoch));
      const std::string message = message_of<NonFiniteError>([&] { trainer.wait(); });
      CHECK_THAT(message, Catch::StartsWith("stopped before the update of step 2: "
                                            "'down1.res_block.conv2.weight' "));
      CHECK(state_of(stream, trainer) == before);
      CHECK(trainer.steps_done() == 1);
    }
}

TEST_CASE("the CUDA kernels at the shapes of the preset quick", "[trainer][cuda]") {
  UNetConfig config;
  config.base = 32;
  const Shape shape{2, 32, 32, 1};
  std::vector<float> pixels(size_t(shape.numel()));
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = float(std::sin(0.1 * double(i)));
  // Output and all gradients, as one list of floats each.
  const auto run = [&](DeviceType type, const Precision& precision) {
    Stream stream(Device::open(type, 2));
    UNet net(stream, config, 3, ops::Fusion::On, precision);
    net.parameters().prepare_training(stream);
    Tape tape(stream);
    const Tensor images = Tensor::from<float>(stream, shape, pixels);
    const Tensor t = Tensor::from<int32_t>(stream, {2}, std::vector<int32_t>{17, 900});
    const Var y = net.forward(tape, net.input(stream, images), t);
    tape.backward(ops::mse(tape, y, images));
    return std::pair(y.value.to_floats(stream), net.parameters().grads.to_floats(stream));
  };
  const auto distance = [](const std::vector<float>& a, const std::vector<float>& b) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      difference += std::pow(double(a[i]) - b[i], 2);
      size += std::pow(double(b[i]), 2);
    }
    return std::sqrt(difference / size);
  };
  const auto expected = run(DeviceType::cpu, Precision::f32());
  for (DeviceType type : cuda_devices()) {
    const auto f32 = run(type, Precision::f32()), bf16 = run(type, Precision::bf16());
    CHECK(distance(f32.first, expected.first) < 1e-4);
    CHECK(distance(f32.second, expected.second) < 1e-4);
    CHECK(distance(bf16.first, expected.first) < 4e-2);
    CHECK(distance(bf16.second, expected.second) < 8e-2);
  }
}

TEST_CASE("train and denoise run on the host model", "[train][cuda]") {
  const TempDir dir;
  const std::string data = write_tiny_data(dir).string(), out = (dir / "run").string();
  const Finished trained = run_program(
      "train", {"--device", "simt", "--data", data, "--out", out, "--image-size", "8", "--levels",
                "1", "--groups", "4", "--time-dim", "8", "--steps", "7", "--batch", "4"});
  CHECK(trained.err == "");
  REQUIRE(trained.status == 0);
  CHECK_THAT(trained.out, Catch::Contains("preset   tiny"));
  CHECK_THAT(trained.out, Catch::Contains("simt, host model of sm_90"));
  CHECK_THAT(trained.out, Catch::Contains("bf16"));
  CHECK(SafeTensors::read(dir / "run" / "model.safetensors").at("init_conv.weight").dtype == "F32");
  const Finished resumed = run_program("train", {"--resume", out, "--steps", "9"});
  CHECK(resumed.err == "");
  CHECK(resumed.status == 0);

  const std::string weights = out + "/model.safetensors", figure = out + "/figure.png";
  const Finished denoised =
      run_program("denoise", {"--device", "simt", "--weights", weights, "--input", figure,
                              "--output", (dir / "clean.png").string(), "--timestep", "500",
                              "--image-size", "8", "--add-noise"});
  CHECK(denoised.err == "");
  CHECK(denoised.status == 0);
  CHECK(std::filesystem::exists(dir / "clean.png"));
}
