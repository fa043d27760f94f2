// What the training loop says, writes and when.
#include <catch2/catch.hpp>
#include <cstring>
#include <numeric>
#include <set>
#include <sstream>

#include "apps/evaluate.h"
#include "apps/train_run.h"
#include "core/safetensors.h"
#include "core/simt/options.h"
#include "core/simt/runtime.h"
#include "tests/json_lines.h"
#include "tests/train_program.h"

using namespace tessera;
namespace fs = std::filesystem;

namespace {

// What a run's checkpoint.safetensors held whenever the run printed a line.
class Watch : public std::stringbuf {
 public:
  explicit Watch(fs::path checkpoint) : checkpoint_(std::move(checkpoint)) {}
  int sync() override {
    if (!fs::exists(checkpoint_)) return 0;
    int64_t step;
    std::memcpy(&step, SafeTensors::read(checkpoint_).at("step").data.data(), sizeof step);
    steps.insert(step);
    return 0;
  }
  std::set<int64_t> steps;

 private:
  fs::path checkpoint_;
};

// Runs train in this process.
int run_here(const Words& words, std::ostream& out) {
  std::vector<const char*> argv{"train"};
  for (const std::string& word : words) argv.push_back(word.c_str());
  return run_train(parse_command_line(int(argv.size()), argv.data()), out, false);
}

}  // namespace

TEST_CASE("checkpoints come every N steps, at each epoch's end and at the end", "[train][cli]") {
  TrainRuns c;
  const auto steps_with = [&](const std::string& every) {
    Watch watch(c.dir / every / "checkpoint.safetensors");
    std::ostream out(&watch);
    const Words words = c.fresh(every, {"--steps", "13", "--log-every", "1", "--eval-every", "0",
                                        "--checkpoint-every", every});
    CHECK(run_here(words, out) == 0);
    out << std::flush;
    return watch.steps;
  };
  CHECK(steps_with("4") == std::set<int64_t>{4, 6, 8, 12, 13});
  CHECK(steps_with("100") == std::set<int64_t>{6, 12, 13});
}

TEST_CASE("a checkpoint that cannot be written leaves a newer model", "[train][cli]") {
  TrainRuns c;
  train(c.fresh("r", {"--steps", "2"}));
  train(c.fresh("whole", {"--steps", "4"}));
  fs::create_directory(c.dir / "r" / ".checkpoint.safetensors.tmp");
  CHECK_THAT(error_of(c.resume("r", {"--steps", "4"}), 1), Catch::Contains("Is a directory"));
  CHECK(c.checkpoint_step("r") == 2);
  CHECK(c.file("r", "model.safetensors") == c.file("whole", "model.safetensors"));
}

TEST_CASE("epoch lines are means of the epoch's steps", "[train][cli]") {
  TrainRuns c;
  const Finished run = train(c.fresh("r", {"--steps", "14", "--log-every", "1"}));
  std::map<int64_t, std::vector<double>> losses;
  for (const auto& line : lines_of(c.file("r", "metrics.jsonl")))
    if (line.contains("loss")) losses[line["epoch"]].push_back(line["loss"]);
  REQUIRE(losses.size() == 3);
  for (const auto& [epoch, of] : losses) {
    char expected[64];
    std::snprintf(expected, sizeof expected, "Epoch [%d/3], Loss: %.6f\n", int(epoch),
                  std::accumulate(of.begin(), of.end(), 0.0) / double(of.size()));
    CHECK_THAT(run.out, Catch::Contains(expected));
  }
}

TEST_CASE("metrics give the speed of the steps since the line before", "[train][cli]") {
  TrainRuns c;
  const auto start = std::chrono::steady_clock::now();
  train(c.fresh("r", {"--steps", "24", "--log-every", "2", "--eval-every", "0"}));
  const std::chrono::duration<double> whole = std::chrono::steady_clock::now() - start;
  double sum = 0;
  for (const auto& line : lines_of(c.file("r", "metrics.jsonl"))) {
    const double seconds = 2 * line["seconds_per_step"].get<double>();  // the median of two
    const double images = line["step"].get<int64_t>() % 6 == 0 ? 5 : 8;
    CHECK(line["images_per_second"].get<double>() * seconds == Approx(images));
    sum += seconds;
  }
  CHECK(sum < whole.count());
}

TEST_CASE("the banner says which steps, and the fifth step how long", "[train][cli]") {
  TrainRuns c;
  const Finished run = train(c.fresh("r", {"--steps", "7"}));
  CHECK_THAT(run.out, Catch::Contains("  steps    1 to 7 of 4 images (6 an epoch), seed 0\n"));
  CHECK_THAT(run.out, Catch::Contains(" for the 2 steps to come\n"));
  const Finished rest = train(c.resume("r", {"--steps", "12"}));
  CHECK_THAT(rest.out, Catch::Contains("  steps    8 to 12 of 4 images (6 an epoch), seed 0\n"));
  CHECK_THAT(rest.out, Catch::Contains("  preset   quick\n"));
  CHECK_THAT(rest.out, !Catch::Contains("steps to come"));  // the fifth step was the last
}

TEST_CASE("the preset tiny evaluates on 16 images", "[train][cli]") {
  TrainRuns c;
  std::string pixels;
  for (int64_t i = 0; i < 300 * 64; ++i) pixels += char((i * i * 7 + i / 64 * 31) % 251);
  write_text(c.dir / "many", idx_file(300, 8, 8, pixels));
  const std::string data = (c.dir / "many").string();
  train(c.fresh(
      "r", {"--steps", "1", "--preset", "tiny", "--device", "cpu", "--data", data, "--seed", "1"}));
  Stream stream(Device::open(DeviceType::cpu, 1));
  UNet model(stream, tiny_options().network(), 1);
  const Dataset images = Dataset::open(data, 8, 1);
  const auto point = lines_of(c.file("r", "metrics.jsonl")).back()["eval"][0];
  const auto expected =
      evaluate(stream, model, images, {{1, 0, 0.5f}, 8, 4, 16}, [] { return false; }).value()[0];
  CHECK(point["noisy_mse"].get<double>() == expected.noisy_mse);
}

TEST_CASE("an evaluation gets the memory of recorded steps when there is no other",
          "[train][cuda]") {
  struct Squeeze : std::stringbuf {
    int sync() override {  // "step 5/5 ...": the evaluation comes next
      if (str().find("step 5/5") != std::string::npos)
        simt::options().total_memory = simt::memory_use().bytes + spare;
      return 0;
    }
    size_t spare = 0;
  };
  const simt::ScopedOptions restore(simt::options());
  TrainRuns c;
  for (const size_t spare : {size_t{0}, size_t{1} << 12, size_t{1} << 30}) {
    simt::options().total_memory = size_t{1} << 36;
    Squeeze squeeze;
    squeeze.spare = spare;
    std::ostream out(&squeeze);
    const std::string name = std::to_string(spare);
    const Words words = c.fresh(name, {"--steps", "5", "--log-every", "1", "--device", "simt",
                                       "--precision", "f32", "--checkpoint-every", "0"});
    CHECK(run_here(words, out) == 0);
    CHECK_THAT(squeeze.str(), Catch::Contains("step 5, held-out images: t=250"));
  }
}
