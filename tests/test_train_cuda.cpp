// Whole training steps through the CUDA kernels: on the host model always, on a GPU when there is
// one. They follow the CPU, give the same bits every time, and stop at what is not finite.
#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <limits>
#include <numeric>

#include "apps/checkpoint.h"
#include "core/safetensors.h"
#include "core/simt/options.h"
#include "core/simt/runtime.h"
#include "tests/cuda_devices.h"
#include "tests/golden_file.h"
#include "tests/run_program.h"
#include "tests/train_case.h"

using namespace tessera;

namespace {

const Schedule kSchedule{21, 4, 102};  // 6 steps an epoch, the last of one image

// The data set of tiny_image() on the device.
Tensor images_on(Stream& stream) {
  std::vector<uint8_t> pixels(21 * 64);
  for (int64_t i = 0; i < 21; ++i) tiny_image(i, pixels.data() + i * 64);
  return Tensor::from<uint8_t>(stream, {21, 8, 8, 1}, pixels);
}

// Trains to step `last`, looking at the losses every `every` steps; returns them.
std::vector<double> train(Trainer& trainer, int64_t last, int64_t every = 1) {
  Loader loader(kSchedule, 1, 64, tiny_image, trainer.steps_done() + 1);
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

// Tensors by name, the output first and then gradients.
using Named = std::vector<std::pair<std::string, Values>>;

// Each in its norm, but a gradient that nearly vanishes in a thousandth of that of all.
void check_each(const char* what, const Named& got, const Named& expected, double output_tolerance,
                double tolerance) {
  REQUIRE(got.size() == expected.size());
  double squares = 0;
  for (size_t i = 1; i < expected.size(); ++i) squares += std::pow(norm(expected[i].second), 2);
  for (size_t i = 0; i < got.size(); ++i) {
    const auto& [name, values] = expected[i];
    const double floor = i == 0 ? 0 : 1e-3 * std::sqrt(squares);
    const double scale = std::max(norm(values), floor);
    INFO(what << ' ' << name);
    CHECK(distance(got[i].second, values) <= (i == 0 ? output_tolerance : tolerance) * scale);
  }
}

}  // namespace

TEST_CASE("training in f32 on CUDA follows the CPU's losses", "[trainer][cuda]") {
  Stream cpu(Device::open(DeviceType::cpu, 2));
  Trainer reference(cpu, options_in("f32"));
  const std::vector<double> expected = train(reference, 20);
  for (DeviceType type : cuda_device_types()) {
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

TEST_CASE("training without fusion gives the same losses up to rounding", "[trainer][cuda]") {
  std::vector<DeviceType> types = cuda_device_types();
  types.push_back(DeviceType::cpu);
  for (DeviceType type : types) {
    const auto losses = [&](const char* fusion) {
      Stream stream(poisoned(type));
      TrainOptions options = options_in("f32");
      options.fusion = fusion;
      Trainer trainer(stream, options);
      return train(trainer, 10);
    };
    const std::vector<double> on = losses("on"), off = losses("off");
    REQUIRE(on.size() == 10);
    CHECK(on != off);  // other kernels
    for (size_t i = 0; i < on.size(); ++i) {
      INFO(name_of(type) << " step " << i + 1);
      CHECK(std::abs(on[i] - off[i]) <= 1e-5 * on[i]);
    }
  }
}

TEST_CASE("training in bf16 and tf32 on CUDA stays near the CPU's losses", "[trainer][cuda]") {
  Stream cpu(Device::open(DeviceType::cpu, 2));
  Trainer reference(cpu, options_in("f32"));
  const std::vector<double> expected = train(reference, 20);
  for (DeviceType type : cuda_device_types())
    for (const char* precision : {"tf32", "bf16"}) {
      Stream stream(poisoned(type));
      Trainer trainer(stream, options_in(precision), images_on(stream));
      const std::vector<double> losses = train(trainer, 20, 20);
      REQUIRE(losses.size() == expected.size());
      const double tolerance = std::string(precision) == "tf32" ? 5e-3 : 2e-2;
      for (size_t i = 0; i < losses.size(); ++i) {
        INFO(name_of(type) << ' ' << precision << " step " << i + 1);
        CHECK(std::abs(losses[i] - expected[i]) <= tolerance * expected[i]);
      }
    }
}

TEST_CASE("a hundred steps in bf16 end near the CPU's loss in f32", "[trainer][cuda]") {
  const auto last_epochs = [](DeviceType type, const char* precision) {
    Stream stream(type == DeviceType::cpu ? Device::open(type, 2) : poisoned(type));
    Trainer trainer(stream, options_in(precision));
    const std::vector<double> losses = train(trainer, 102, 20);
    REQUIRE(losses.size() == 102);
    CHECK(losses.back() < 0.5 * losses.front());                        // it has learnt something
    return std::accumulate(losses.end() - 12, losses.end(), 0.0) / 12;  // two epochs
  };
  const double expected = last_epochs(DeviceType::cpu, "f32");
  std::vector<DeviceType> types = cuda_device_types();
  types.push_back(DeviceType::cpu);
  for (DeviceType type : types) {
    INFO(name_of(type));
    CHECK(std::abs(last_epochs(type, "bf16") - expected) <= 2e-2 * expected);
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

TEST_CASE("recorded steps have the bits of steps that are not", "[trainer][cuda]") {
  for (DeviceType type : cuda_device_types())
    for (const char* precision : {"f32", "bf16"}) {
      Stream stream(poisoned(type)), plain(poisoned(type));
      Trainer recorded(stream, options_in(precision)), issued(plain, options_in(precision));
      for (uint32_t epoch = 0; epoch < 4; ++epoch) {
        INFO(name_of(type) << ' ' << precision << " step " << epoch + 1);
        issued.drop_recordings();
        CHECK(recorded.step(tiny_batch(4, epoch)) == issued.step(tiny_batch(4, epoch)));
        CHECK(state_of(stream, recorded) == state_of(plain, issued));
      }
      CHECK(stream.device().pool()->bytes_in_use() > plain.device().pool()->bytes_in_use());
    }
}

TEST_CASE("after the second step a CUDA step takes no memory", "[trainer][cuda]") {
  for (DeviceType type : cuda_device_types()) {
    const auto device = Device::open(type, 2);
    Stream stream(device);
    Trainer trainer(stream, options_in("bf16"));
    for (int i = 0; i < 2; ++i) trainer.step(tiny_batch(4));
    const int64_t misses = device->pool()->misses();
    for (uint32_t epoch = 1; epoch < 4; ++epoch) trainer.step(tiny_batch(4, epoch));
    CHECK(device->pool()->misses() == misses);
  }
}

TEST_CASE("a step of another size gets the memory of a recorded one when there is no other",
          "[trainer][cuda]") {
  // BatchNorms have seen the batch by then, and must not see it twice.
  const std::string norm = GENERATE("group", "batch");
  const simt::ScopedOptions restore(simt::options());
  const auto run = [&](size_t spare) {
    Stream stream(poisoned(DeviceType::simt));
    Trainer trainer(stream, tiny_options("1", {{"precision", "f32"}, {"norm", norm}}));
    trainer.step(tiny_batch(32));
    trainer.step(tiny_batch(32, 1));
    simt::options().total_memory = simt::memory_use().bytes + spare;
    std::vector<double> losses{trainer.step(tiny_batch(31, 2))};
    losses.push_back(trainer.step(tiny_batch(32, 3)));
    return std::pair(losses, state_of(stream, trainer));
  };
  const auto plenty = run(size_t{1} << 30);
  for (const size_t spare : {1 << 6, 1 << 14, 1 << 18, 1 << 20}) {
    INFO(norm << ", " << spare << " bytes");
    const bool same = run(spare) == plenty;
    CHECK(same);
  }
}

TEST_CASE("a step that there is no memory for changes nothing", "[trainer][cuda]") {
  const simt::ScopedOptions restore(simt::options());
  Stream stream(poisoned(DeviceType::simt));
  Trainer trainer(stream, tiny_options("1", {{"precision", "f32"}, {"norm", "batch"}}));
  for (uint32_t epoch : {0, 1}) trainer.step(tiny_batch(8, epoch));
  const std::string before = state_of(stream, trainer);
  for (const size_t spare : {1 << 14, 1 << 20, 1 << 21, 1 << 22}) {
    simt::options().total_memory = simt::memory_use().bytes + spare;
    CHECK_THROWS_AS(trainer.step(tiny_batch(256, 2)), OutOfMemory);
    const bool same = state_of(stream, trainer) == before;
    CHECK(same);
  }
  CHECK(trainer.steps_done() == 2);
}

TEST_CASE("a NaN on a CUDA device stops before its update, however late it is seen",
          "[trainer][cuda]") {
  for (DeviceType type : cuda_device_types())
    for (const char* precision : {"f32", "bf16"}) {
      INFO(name_of(type) << ' ' << precision);
      const simt::ScopedOptions restore(simt::options());
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
      // The step that is looked at gets the memory of the recorded one.
      if (type == DeviceType::simt)
        simt::options().total_memory = simt::memory_use().bytes + (1 << 12);
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
  // The output, and every parameter's gradient.
  const auto run = [&](DeviceType type, const Precision& precision) {
    Stream stream(Device::open(type, 2));
    UNet net(stream, config, 3, ops::Fusion::On, precision);
    net.parameters().prepare_training(stream);
    Tape tape(stream);
    const Tensor images = Tensor::from<float>(stream, shape, pixels);
    const Tensor t = Tensor::from<int32_t>(stream, {2}, std::vector<int32_t>{17, 900});
    const Var y = net.forward(tape, net.input(stream, images), t);
    tape.backward(ops::mse(tape, y, images));
    Named result{{"output", values_of(stream, y.value)}};
    for (const Parameter& p : net.parameters().list())
      result.emplace_back(p.name, values_of(stream, p.var.grad()));
    return result;
  };
  const Named expected = run(DeviceType::cpu, Precision::f32());
  for (DeviceType type : cuda_device_types()) {
    check_each("f32", run(type, Precision::f32()), expected, 1e-4, 1e-4);
    check_each("bf16", run(type, Precision::bf16()), expected, 4e-2, 8e-2);
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

TEST_CASE("launches that overlap, and branches, give the bits of launches in one line",
          "[train][cuda]") {
  const TempDir dir;
  const std::string data = write_tiny_data(dir).string();
  // On the host model launches never overlap.
  const DeviceType type = has_gpu() ? DeviceType::cuda : DeviceType::simt;
  const auto trained = [&](const std::string& environment) {
    const std::filesystem::path out = dir / ("with " + environment);
    const Finished run =
        run_program("train", {"--device",     name_of(type),
                              "--data",       data,
                              "--out",        out.string(),
                              "--image-size", "8",
                              "--levels",     "1",
                              "--base",       "16",
                              "--groups",     "4",
                              "--time-dim",   "8",
                              "--steps",      type == DeviceType::cuda ? "40" : "6",
                              "--batch",      "4"},
                    environment);
    CHECK(run.err == "");
    REQUIRE(run.status == 0);
    return read_text(out / "model.safetensors");
  };
  const std::string usual = trained("TESSERA_OVERLAP=1");
  CHECK(trained("TESSERA_BRANCHES=0") == usual);
  if (type == DeviceType::cuda) CHECK(trained("TESSERA_OVERLAP=0") == usual);
}

// Here the parts of a block's gradients have sizes of which a pool's block holds two and more.
TEST_CASE("steps of odd batches are recorded", "[train][cuda]") {
  const TempDir dir;
  const std::string data = write_tiny_data(dir).string();
  for (const char* const batch : {"5", "7"}) {
    const Finished run = run_program(
        "train", {"--device",     "simt", "--data",     data, "--out",   (dir / batch).string(),
                  "--image-size", "16",   "--levels",   "1",  "--base",  "8",
                  "--groups",     "4",    "--time-dim", "8",  "--steps", "3",
                  "--batch",      batch});
    CHECK(run.err == "");
    CHECK(run.status == 0);
  }
}

TEST_CASE("memory that batches are uploaded from is used again", "[trainer][cuda]") {
  const auto device = Device::open(DeviceType::simt, 1);
  Stream stream(device);
  Trainer trainer(stream, tiny_options());
  for (uint32_t i = 0; i < 2; ++i) trainer.step(tiny_batch(4, i));
  const auto before = simt::memory_use().pinned_allocations;
  for (uint32_t i = 2; i < 4; ++i) trainer.step(tiny_batch(4, i));
  CHECK(simt::memory_use().pinned_allocations == before);
}

TEST_CASE("a batch that there is no memory for names a smaller one", "[trainer][cuda]") {
  const simt::ScopedOptions restore(simt::options());
  Stream stream(Device::open(DeviceType::simt, 1));
  Trainer trainer(stream, tiny_options());
  simt::options().total_memory = simt::memory_use().bytes + (1 << 14);
  CHECK_THAT(message_of<OutOfMemory>([&] { trainer.step(tiny_batch(256)); }),
             Catch::EndsWith(", for a batch of 256: try --batch 128"));
}

TEST_CASE("tf32 is what products of f32 are in where it is asked for", "[trainer][cuda]") {
  const auto loss = [](const char* precision) {
    Stream stream(Device::open(DeviceType::simt, 2));
    Trainer trainer(stream, tiny_options("1", {{"precision", precision}}));
    return trainer.step(tiny_batch(4));
  };
  CHECK(loss("tf32") != loss("f32"));
}
