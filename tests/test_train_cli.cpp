// The program train from outside: statuses, files, signals, resumption.
#include <sys/stat.h>
#include <limits>

#include <catch2/catch.hpp>
#include <csignal>

#include "apps/image.h"
#include "apps/run_dir.h"
#include "core/simt/sanitizer.h"
#include "kernels/cpu/onednn.h"
#include "layers/weights.h"
#include "tests/json_lines.h"
#include "tests/paths.h"
#include "tests/train_program.h"

using namespace tessera;
using namespace std::chrono_literals;
namespace fs = std::filesystem;

TEST_CASE("train writes all files of a run", "[train][cli]") {
  TrainRuns c;
  const Finished run = train(c.fresh("r", {"--steps", "14", "--log-every", "4"}));
  CHECK_THAT(run.out, Catch::Contains("Epoch [1/3], Loss: 0.") &&
                          Catch::Contains("Epoch [3/3], Loss: 0.") &&
                          Catch::Contains("quick (the default on cpu"));
  Words seen;
  for (const auto& line : lines_of(c.file("r", "metrics.jsonl")))
    seen.push_back((line.contains("eval") ? "e" : "s") + line["step"].dump());
  CHECK(seen == Words{"s4", "e6", "s8", "s12", "e12", "s14", "e14"});
  CHECK(c.checkpoint_step("r") == 14);
  CHECK(read_image(c.dir / "r" / "figure.png", 1).width > 0);
  const SafeTensors model = SafeTensors::read(c.dir / "r" / "model.safetensors");
  CHECK(config_of(model) == tiny_options().network());
  CHECK(model.metadata() == metadata_of(tiny_options().network()));
}

TEST_CASE("metrics lines have the promised numbers", "[train][cli]") {
  TrainRuns c;
  train(c.fresh("r", {"--steps", "7", "--log-every", "1"}));
  double epoch_sum = 0;
  for (const auto& line : lines_of(c.file("r", "metrics.jsonl"))) {
    if (line.contains("eval")) {
      REQUIRE(line["eval"].size() == 3);
      for (size_t i = 0; i < 3; ++i) {
        const auto& point = line["eval"][i];
        CHECK(point["t"] == 250 * (i + 1));
        // The noise has mean square (t/1000 * .5)^2 over the 128 held-out pixels.
        const double sigma = 0.125 * double(i + 1);
        CHECK(point["noisy_mse"].get<double>() == Approx(sigma * sigma).epsilon(0.5));
        for (const char* kind : {"noisy", "denoised"})
          CHECK(point[std::string(kind) + "_psnr"].get<double>() ==
                Approx(10 * std::log10(4 / point[std::string(kind) + "_mse"].get<double>())));
      }
      continue;
    }
    CHECK(line["epoch"] == (line["step"] <= 6 ? 1 : 2));
    CHECK(line["seconds_per_step"] > 0);
    CHECK(line["images_per_second"] > 0);
    CHECK(line["peak_bytes"] > 10000);
    if (line["step"] <= 6) epoch_sum += line["loss"].get<double>();
  }
  char expected[64];
  std::snprintf(expected, sizeof expected, "Epoch [1/2], Loss: %.6f\n", epoch_sum / 6);
  const Finished again = train(c.fresh("again", {"--steps", "7"}));
  CHECK_THAT(again.out, Catch::Contains(expected));
}

TEST_CASE("two runs of one seed, and a run of its config, give the same files", "[train][cli]") {
  TrainRuns c;
  train(c.fresh("a", {"--steps", "9", "--seed", "5"}));
  train(c.fresh("b", {"--steps", "9", "--seed", "5"}));
  train({"--config", (c.dir / "a" / "config.json").string(), "--out", (c.dir / "c").string()});
  train(c.fresh("d", {"--steps", "9", "--seed", "6"}));
  for (const char* name :
       {"config.json", "model.safetensors", "checkpoint.safetensors", "figure.png"}) {
    CHECK(c.file("a", name) == c.file("b", name));
    CHECK(c.file("a", name) == c.file("c", name));
    CHECK(c.file("a", name) != c.file("d", name));
  }
}

TEST_CASE("a run in bf16 says where its products are in f32", "[train][cli]") {
  TrainRuns c;
  const std::string line = "  products in f32: this CPU has no instructions for those of bf16\n";
  const auto says = [&](const std::string& precision) {
    const Finished run = train(c.fresh(precision, {"--steps", "1", "--precision", precision}));
    return run.out.find(line) != std::string::npos;
  };
  CHECK(says("bf16") == (cpu::bf16_products() == cpu::Bf16Products::Widened));
  CHECK(!says("f32"));
}

TEST_CASE("a resumed run ends with the bits of the uninterrupted one", "[train][cli]") {
  TrainRuns c;
  const std::string precision = GENERATE("f32", "bf16");
  const Finished whole = train(c.fresh("whole", {"--steps", "14", "--precision", precision}));
  const std::string epochs_of_whole = whole.out.substr(whole.out.find("Epoch [2/3]"), 29);
  for (const std::string stop : {"1", "6", "8"}) {
    train(c.fresh(stop, {"--steps", stop, "--precision", precision}));
    const Finished rest = train(c.resume(stop, {"--steps", "14"}));
    CHECK_THAT(rest.out, Catch::Contains(epochs_of_whole));
    for (const char* name : {"model.safetensors", "checkpoint.safetensors", "figure.png"})
      CHECK(c.file(stop, name) == c.file("whole", name));
    CHECK(c.file(stop, "config.json").find("\"steps\": 14") != std::string::npos);
  }
}

TEST_CASE("a finished run is left alone", "[train][cli]") {
  TrainRuns c;
  train(c.fresh("r", {"--steps", "3"}));
  const std::string before = c.file("r", "metrics.jsonl");
  const Finished again = train(c.resume("r"));
  CHECK(again.out == (c.dir / "r").string() + " is at step 3 of 3 already: nothing to do\n");
  CHECK(c.file("r", "metrics.jsonl") == before);
  CHECK_THAT(error_of(c.fresh("r"), 1), Catch::Contains("config.json"));
  CHECK(c.file("r", "metrics.jsonl") == before);
}

TEST_CASE("a finished run without checkpoints of its own leaves none behind its model",
          "[train][cli]") {
  TrainRuns c;
  train(c.fresh("r", {"--steps", "3"}));
  train(c.resume("r", {"--steps", "6", "--checkpoint-every", "0"}));
  CHECK(c.checkpoint_step("r") == 6);
  CHECK_THAT(train(c.resume("r")).out, Catch::Contains("is at step 6 of 6 already"));
  train(c.fresh("none", {"--steps", "6", "--checkpoint-every", "0"}));
  CHECK_FALSE(fs::exists(c.dir / "none" / "checkpoint.safetensors"));
  CHECK(c.file("r", "model.safetensors") == c.file("none", "model.safetensors"));
}

TEST_CASE("a network without groups starts from weights of any", "[train][cli]") {
  TrainRuns c;
  train(c.fresh("a", {"--steps", "1", "--norm", "layer"}));
  const std::string weights = (c.dir / "a" / "model.safetensors").string();
  train(c.fresh("b", {"--steps", "1", "--norm", "layer", "--groups", "2", "--weights", weights}));
  write_png(c.dir / "in.png", {8, 8, 1, std::vector<uint8_t>(64, 100)});
  const Words image{"--weights",  weights,
                    "--groups",   "2",
                    "--input",    (c.dir / "in.png").string(),
                    "--timestep", "1",
                    "--output",   (c.dir / "out.png").string()};
  CHECK(run_program("denoise", image).err == "");
  CHECK(fs::exists(c.dir / "out.png"));
}

TEST_CASE("a signal that is ignored when train starts stays so", "[train][cli]") {
  TrainRuns c;
  const auto old = std::signal(SIGINT, SIG_IGN);
  Child child(c.fresh("r", {"--steps", "1000000000", "--log-every", "1", "--eval-every", "0"}));
  std::signal(SIGINT, old);
  REQUIRE(wait_for(c.dir / "r" / "metrics.jsonl", child));
  child.send(SIGINT);
  std::this_thread::sleep_for(200ms);
  CHECK(child.running());
  child.send(SIGTERM);
  CHECK(child.wait() == 128 + SIGTERM);
}

TEST_CASE("a run that was killed before its first checkpoint starts again", "[train][cli]") {
  TrainRuns c;
  train(c.fresh("r", {"--steps", "3", "--log-every", "1"}));
  const std::string model = c.file("r", "model.safetensors");
  for (const char* name : {"checkpoint.safetensors", "model.safetensors", "figure.png"})
    fs::remove(c.dir / "r" / name);
  train(c.resume("r"));
  CHECK(c.file("r", "model.safetensors") == model);
  CHECK(lines_of(c.file("r", "metrics.jsonl")).size() == 4);
}

TEST_CASE("a trained model without its checkpoint is not overwritten", "[train][cli]") {
  TrainRuns c;
  train(c.fresh("r", {"--steps", "3"}));
  const std::string model = c.file("r", "model.safetensors");
  fs::remove(c.dir / "r" / "checkpoint.safetensors");
  CHECK_THAT(error_of(c.resume("r", {"--steps", "4"}), 1),
             Catch::Contains("has model.safetensors, but no checkpoint.safetensors to go on from"));
  CHECK(c.file("r", "model.safetensors") == model);
}

TEST_CASE("a checkpoint goes with the settings that it was made with", "[train][cli]") {
  TrainRuns c;
  train(c.fresh("r", {"--steps", "3", "--seed", "5"}));
  std::string config = c.file("r", "config.json");
  const size_t at = config.find("\"seed\": 5");
  REQUIRE(at != std::string::npos);
  write_text(c.dir / "r" / "config.json", config.replace(at, 9, "\"seed\": 6"));
  CHECK_THAT(error_of(c.resume("r", {"--steps", "4"}), 1),
             Catch::Contains("metadata 'seed' is 5, expected 6\n"));
}

TEST_CASE("closed standard descriptors do not send the output into files", "[train][cli]") {
  TrainRuns c;
  std::string line = concat("'", bin_dir(), "/train'");
  for (const std::string& word : c.fresh("r", {"--steps", "3"})) line += concat(" '", word, "'");
  REQUIRE(std::system((line + " <&- >&- 2>/dev/null").c_str()) == 0);
  CHECK(read_text(c.dir / "r" / ".lock").empty());
  for (const auto& metrics : lines_of(c.file("r", "metrics.jsonl")))
    CHECK(metrics.contains("step"));
}

TEST_CASE("a run that was killed before its evaluation makes up for it", "[train][cli]") {
  TrainRuns c;
  train(c.fresh("r", {"--steps", "6"}));
  const std::string metrics = c.file("r", "metrics.jsonl"), figure = c.file("r", "figure.png");
  write_text(c.dir / "r" / "metrics.jsonl", metrics.substr(0, metrics.find('\n') + 1) + "{\"st");
  fs::remove(c.dir / "r" / "figure.png");
  fs::remove(c.dir / "r" / "model.safetensors");
  train(c.resume("r"));
  CHECK(c.file("r", "metrics.jsonl") == metrics);
  CHECK(c.file("r", "figure.png") == figure);
  CHECK(fs::exists(c.dir / "r" / "model.safetensors"));
}

TEST_CASE("evaluation and checkpoints follow their flags", "[train][cli]") {
  TrainRuns c;
  train(c.fresh("never", {"--steps", "7", "--eval-every", "0", "--checkpoint-every", "0"}));
  CHECK(c.file("never", "metrics.jsonl").find("eval") == std::string::npos);
  CHECK_FALSE(fs::exists(c.dir / "never" / "checkpoint.safetensors"));
  CHECK_FALSE(fs::exists(c.dir / "never" / "figure.png"));
  CHECK(fs::exists(c.dir / "never" / "model.safetensors"));
  CHECK_THAT(error_of(c.resume("never"), 1), Catch::Contains("--checkpoint-every 0"));

  train(c.fresh("often", {"--steps", "7", "--eval-every", "2"}));
  Words evaluated;
  for (const auto& line : lines_of(c.file("often", "metrics.jsonl")))
    if (line.contains("eval")) evaluated.push_back(line["step"].dump());
  CHECK(evaluated == Words{"2", "4", "6", "7"});
  CHECK(c.file("often", "model.safetensors") == c.file("never", "model.safetensors"));
}

TEST_CASE("training starts from given weights", "[train][cli]") {
  TrainRuns c;
  train(c.fresh("first", {"--steps", "5"}));
  const std::string weights = (c.dir / "first" / "model.safetensors").string();
  train(c.fresh("second", {"--steps", "5", "--weights", weights, "--lr", "1e-12"}));
  const SafeTensors before = SafeTensors::read(weights);
  const SafeTensors after = SafeTensors::read(c.dir / "second" / "model.safetensors");
  const auto first = before.at("init_conv.weight").data, last = after.at("init_conv.weight").data;
  CHECK(std::memcmp(first.data(), last.data(), first.size()) == 0);
  CHECK_THAT(error_of(c.fresh("third", {"--weights", weights, "--base", "16"}), 1),
             Catch::Contains("--base 8, but --base is 16"));
  CHECK_FALSE(fs::exists(c.dir / "third"));
}

TEST_CASE("weights that are not finite are refused, and such that overflow stop at step 1",
          "[train][cli]") {
  TrainRuns c;
  Stream stream(Device::open(DeviceType::cpu, 1));
  Trainer trainer(stream, tiny_options());
  Parameters& parameters = trainer.model().parameters();
  const fs::path weights = c.dir / "w.safetensors";
  const auto error_with = [&](size_t parameter, float value) {
    parameters.list()[parameter].var.value.data<float>()[0] = value;
    save_weights(stream, parameters, trainer.model().config(), weights);
    return error_of(c.fresh("r", {"--weights", weights.string()}), 1);
  };
  REQUIRE(parameters.list()[4].name == "init_conv.weight");
  CHECK(error_with(4, std::numeric_limits<float>::quiet_NaN()) ==
        weights.string() +
            ": tensor 'init_conv.weight' is nan at element 0, expected finite numbers\n");
  CHECK_FALSE(fs::exists(c.dir / "r"));
  CHECK_THAT(error_with(4, std::numeric_limits<float>::max()),
             Catch::StartsWith("stopped before the update of step 1: 'init_conv.conv2d' "));
  CHECK_FALSE(fs::exists(c.dir / "r" / "checkpoint.safetensors"));
}

TEST_CASE("a second process is kept from a run", "[train][cli]") {
  TrainRuns c;
  train(c.fresh("r", {"--steps", "2"}));
  const RunDir lock = RunDir::reopen(c.dir / "r");
  CHECK_THAT(error_of(c.resume("r", {"--steps", "4"}), 1),
             Catch::Contains("another process is writing to this run"));
}

TEST_CASE("SIGINT, SIGTERM and SIGHUP finish the step, write a checkpoint and say so",
          "[train][cli]") {
  TrainRuns c;
  const Words endless{"--steps",      "1000000000", "--log-every",        "1",
                      "--eval-every", "0",          "--checkpoint-every", "0"};
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    const std::string out = concat("signal", number);
    Child child(c.fresh(out, endless));
    REQUIRE(wait_for(c.dir / out / "metrics.jsonl", child));
    child.send(number);
    CHECK(child.wait() == 128 + number);
    const int64_t step = lines_of(c.file(out, "metrics.jsonl")).back()["step"];
    CHECK(c.checkpoint_step(out) == step);
    train(c.resume(out, {"--steps", std::to_string(step + 2)}));
    train(c.fresh(out + "2", {"--steps", std::to_string(step + 2)}));
    CHECK(c.file(out, "model.safetensors") == c.file(out + "2", "model.safetensors"));
  }
}

#ifndef TESSERA_TSAN  // which keeps signals back while a file is being opened
TEST_CASE("a second signal ends train at once", "[train][cli]") {
  TrainRuns c;
  Child child(c.fresh("r", {"--steps", "1000000000", "--log-every", "1", "--checkpoint-every", "0",
                            "--eval-every", "0"}));
  REQUIRE(wait_for(c.dir / "r" / "metrics.jsonl", child));
  // Opening this pipe for writing blocks for ever: what the first signal asks for cannot end.
  REQUIRE(mkfifo((c.dir / "r" / ".model.safetensors.tmp").c_str(), 0600) == 0);
  child.send(SIGINT);
  std::this_thread::sleep_for(500ms);
  REQUIRE(child.running());
  child.send(SIGTERM);
  CHECK(child.wait() == 143);
}
#endif
