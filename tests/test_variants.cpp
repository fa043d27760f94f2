// Every variant of the network is trained, saved and loaded again, on the CPU and by the CUDA
// kernels: with the same bits. That each computes what PyTorch computes is shown by the goldens.
#include <catch2/catch.hpp>
#include <set>

#include "apps/checkpoint.h"
#include "layers/weights.h"
#include "tests/denoise_case.h"
#include "tests/op_runner.h"
#include "tests/train_case.h"
#include "tests/train_program.h"
#include "tests/variants.h"

using namespace tessera;
namespace fs = std::filesystem;

namespace {

TrainOptions options_of(const Variant& variant, const char* precision) {
  TrainOptions options = tiny_options("1", variant);
  options.precision = precision;
  return options;
}

// What a network that is not trained any more makes of two images.
std::string output_bits(Stream& stream, const UNet& net) {
  const Tensor x = Tensor::from<float>(stream, {2, 8, 8, 1}, numbers(2 * 64));
  const Tensor t = Tensor::from<int32_t>(stream, {2}, std::vector<int32_t>{30, 900});
  Tape tape(stream, Tape::Mode::Inference);
  const std::vector<float> y = net.forward(tape, net.input(stream, x), t).value.to_floats(stream);
  return {reinterpret_cast<const char*>(y.data()), y.size() * sizeof(float)};
}

// Three steps, of which a GPU records the second and issues the third as one, with a checkpoint
// after the first.
void train_save_reload(DeviceType type, const char* precision) {
  const TempDir dir;
  for (const Variant& variant : variants()) {
    INFO(name_of(type) << ' ' << precision << ": " << text_of(variant));
    Stream stream(poisoned(type));
    const TrainOptions options = options_of(variant, precision);
    Trainer whole(stream, options), resumed(stream, options);
    const std::string start = state_of(stream, whole);
    whole.step(tiny_batch(4));
    CHECK(state_of(stream, whole) != start);
    save_checkpoint(stream, whole.model().parameters(), {1, 0, 21, options.settings()}, dir / "c");
    for (uint32_t epoch : {1, 2}) whole.step(tiny_batch(4, epoch));

    load_checkpoint(stream, resumed.model().parameters(), dir / "c", 21, options.settings());
    resumed.set_steps_done(1);
    for (uint32_t epoch : {1, 2}) {
      resumed.drop_recordings();
      resumed.step(tiny_batch(4, epoch));
    }
    CHECK(state_of(stream, resumed) == state_of(stream, whole));

    // The file alone says which network it is.
    const UNet& net = whole.model();
    save_weights(stream, whole.model().parameters(), net.config(), dir / "m");
    const SafeTensors file = SafeTensors::read(dir / "m");
    REQUIRE(config_of(file) == options.network());
    UNet loaded(stream, config_of(file), 5, ops::Fusion::On, net.precision());
    CHECK(output_bits(stream, loaded) != output_bits(stream, net));
    load_weights(stream, loaded.parameters(), file);
    CHECK(output_bits(stream, loaded) == output_bits(stream, net));
    CHECK(loaded.parameters().batches == (net.config().norm == NormKind::Batch ? 3 : 0));
  }
}

}  // namespace

TEST_CASE("every variant is trained, saved and loaded with the same bits", "[variants]") {
  train_save_reload(DeviceType::cpu, "f32");
}

TEST_CASE("CUDA: every variant is trained, saved and loaded with the same bits",
          "[variants][cuda]") {
  train_save_reload(DeviceType::simt, "bf16");
}

TEST_CASE("no two variants compute the same", "[variants]") {
  std::set<std::string> outputs;
  for (const Variant& variant : variants()) {
    Stream stream(poisoned_cpu());
    Trainer trainer(stream, options_of(variant, "f32"));
    trainer.step(tiny_batch(4));
    outputs.insert(output_bits(stream, trainer.model()));
  }
  CHECK(outputs.size() == variants().size());
}

TEST_CASE("training a variant without fusion gives the same losses up to rounding", "[variants]") {
  for (const Variant& variant : variants()) {
    INFO(text_of(variant));
    const auto losses = [&](const char* fusion) {
      Stream stream(poisoned_cpu());
      TrainOptions options = options_of(variant, "f32");
      options.fusion = fusion;
      Trainer trainer(stream, options);
      std::vector<double> values;
      for (uint32_t epoch = 0; epoch < 4; ++epoch)
        values.push_back(trainer.step(tiny_batch(4, epoch)));
      return values;
    };
    const std::vector<double> on = losses("on"), off = losses("off");
    for (size_t i = 0; i < on.size(); ++i) CHECK(std::abs(on[i] - off[i]) <= 1e-5 * on[i]);
  }
}

TEST_CASE("what BatchNorm makes of an image in evaluation does not depend on its batch",
          "[variants]") {
  Stream stream(poisoned_cpu());
  Trainer trainer(stream, options_of({{"norm", "batch"}}, "f32"));
  trainer.step(tiny_batch(4));
  const UNet& net = trainer.model();
  const auto first_image = [&](int64_t n, Tape::Mode mode) {
    const Tensor x = Tensor::from<float>(stream, {n, 8, 8, 1}, numbers(n * 64));
    Tape tape(stream, mode);
    std::vector<float> y = net.forward(tape, Var::leaf(x), Tensor::zeros(stream, {n}, DType::i32))
                               .value.to_vector<float>(stream);
    y.resize(64);
    return Values{{64}, {y.begin(), y.end()}};
  };
  const std::string before = bits_of(stream, trainer.model().parameters().statistics);
  const auto alone = first_image(1, Tape::Mode::Inference);
  CHECK(difference(first_image(3, Tape::Mode::Inference), alone, 1e-5) == "");
  CHECK(bits_of(stream, trainer.model().parameters().statistics) == before);
  CHECK(difference(first_image(3, Tape::Mode::Train), first_image(1, Tape::Mode::Train), 1e-2) !=
        "");
  CHECK(bits_of(stream, trainer.model().parameters().statistics) != before);
}

TEST_CASE("the programs train, resume and denoise with every variant", "[variants][train][cli]") {
  const TrainRuns c;
  write_png(c.dir / "in.png", picture(8, 8, 1));
  int number = 0;
  for (const Variant& variant : variants()) {
    INFO(text_of(variant));
    const std::string a = concat("a", ++number), b = concat("b", number);
    const auto run = [&](Words words) {
      const Words flags = flags_of(variant);
      words.insert(words.end(), flags.begin(), flags.end());
      return train(words);
    };
    const Finished first = run(c.fresh(a, {"--steps", "2"}));
    for (const auto& [name, value] : variant)
      CHECK_THAT(first.out, Catch::Contains(" --" + text_of({{name, value}}).substr(2)));
    run(c.fresh(b, {"--steps", "1"}));
    train(c.resume(b, {"--steps", "2"}));
    for (const char* name : {"model.safetensors", "checkpoint.safetensors", "config.json"})
      CHECK(c.file(a, name) == c.file(b, name));
    // Weights to start from are taken for the same network only.
    run(c.fresh("c" + a,
                {"--steps", "1", "--weights", (c.dir / a / "model.safetensors").string()}));
    CHECK(error_of(c.fresh("d", {"--weights", (c.dir / a / "model.safetensors").string()}), 1)
              .find("holds a network with --") != std::string::npos);

    // By its metadata, by its metadata and flags, and by tensors and flags.
    const SafeTensors file = SafeTensors::read(c.dir / a / "model.safetensors");
    std::vector<SafeTensorEntry> entries;
    for (const std::string& name : file.names())
      entries.push_back({name, file.at(name).dtype == "I64" ? DType::i64 : DType::f32,
                         file.at(name).shape, file.at(name).data});
    write_safetensors(c.dir / "bare", entries);
    Arguments flags{"--timestep", "500", "--force", "--groups", "4"};
    const auto denoised = [&](const fs::path& weights) {
      denoise(files(weights, c.dir / "in.png", c.dir / "out.png", flags));
      return read_text(c.dir / "out.png");
    };
    const std::string expected = denoised(c.dir / a / "model.safetensors");
    for (const std::string& word : flags_of(variant)) flags.push_back(word);
    CHECK(denoised(c.dir / a / "model.safetensors") == expected);
    CHECK(denoised(c.dir / "bare") == expected);
  }
}
