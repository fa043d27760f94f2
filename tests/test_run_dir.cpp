// The run directory and what is appended in it: one writer, nothing overwritten, torn lines
// survived.
#include "apps/run_dir.h"

#include <catch2/catch.hpp>
#include <csignal>
#include <sstream>

#include "apps/metrics.h"
#include "apps/progress.h"
#include "apps/stop_signal.h"
#include "core/check.h"
#include "tests/temp_dir.h"

using namespace tessera;
namespace fs = std::filesystem;

namespace {

std::string step_line(int64_t step) {
  return "{\"step\":" + std::to_string(step) + ",\"loss\":1}\n";
}
std::string eval_line(int64_t step) {
  return "{\"step\":" + std::to_string(step) + ",\"eval\":[]}\n";
}

}  // namespace

TEST_CASE("a new run makes its directory and the ones above it", "[run]") {
  TempDir dir;
  const RunDir run = RunDir::create(dir / "a" / "b");
  CHECK(fs::is_directory(dir / "a" / "b"));
  run.write_config("{}");
  CHECK(read_text(dir / "a" / "b" / "config.json") == "{}");
}

TEST_CASE("a directory that holds any file of a run is refused", "[run]") {
  for (const char* name : {"config.json", "metrics.jsonl", "model.safetensors",
                           "checkpoint.safetensors", "figure.png"}) {
    TempDir dir;
    write_text(dir / name, "old");
    const std::string message = message_of<InputError>([&] { RunDir::create(dir.path()); });
    CHECK_THAT(message, Catch::Contains(dir.path().string()) && Catch::Contains(name));
    CHECK(read_text(dir / name) == "old");
  }
  TempDir dir;
  write_text(dir / "notes.txt", "mine");
  CHECK_NOTHROW(RunDir::create(dir.path()));
}

TEST_CASE("a path that cannot be a directory is refused", "[run]") {
  TempDir dir;
  write_text(dir / "file", "");
  for (const fs::path& path : {dir / "file", dir / "file" / "run"})
    CHECK_THAT(message_of<InputError>([&] { RunDir::create(path); }),
               Catch::StartsWith("cannot write to " + path.string() + ": "));
}

TEST_CASE("a run directory has one writer at a time", "[run]") {
  TempDir dir;
  {
    const RunDir run = RunDir::create(dir / "run");
    run.write_config("{}");
    CHECK(message_of<InputError>([&] { RunDir::reopen(dir / "run"); }) ==
          "cannot write to " + (dir / "run").string() + ": another process is writing to this run");
  }
  CHECK_NOTHROW(RunDir::reopen(dir / "run"));
}

TEST_CASE("only the directory of a run can be resumed", "[run]") {
  TempDir dir;
  CHECK_THAT(message_of<InputError>([&] { RunDir::reopen(dir.path()); }),
             Catch::Contains(dir.path().string()) && Catch::Contains("config.json"));
  CHECK(fs::is_empty(dir.path()));
}

TEST_CASE("metrics are JSON lines with the keys in order", "[run]") {
  TempDir dir;
  Metrics metrics(dir / "m", 0);
  metrics.add({50, 1, 0.25, 0.5, 64, 1000});
  metrics.add(50, {{500, 0.0625, 18.5, 0.01, 26}});
  CHECK(read_text(dir / "m") ==
        "{\"step\":50,\"epoch\":1,\"loss\":0.25,\"seconds_per_step\":0.5,"
        "\"images_per_second\":64.0,\"peak_bytes\":1000}\n"
        "{\"step\":50,\"eval\":[{\"t\":500,\"noisy_mse\":0.0625,\"noisy_psnr\":18.5,"
        "\"denoised_mse\":0.01,\"denoised_psnr\":26.0}]}\n");
  CHECK(metrics.has_evaluation(50));
  CHECK_FALSE(metrics.has_evaluation(49));
}

TEST_CASE("resumed metrics drop later lines and a torn last one", "[run]") {
  TempDir dir;
  const std::string kept = step_line(1) + eval_line(2) + step_line(2);
  for (const std::string& tail :
       {std::string(), step_line(3), eval_line(4) + step_line(3), std::string("{\"step\":2,\"lo"),
        step_line(3) + "{\"st", std::string("{\"step\":2}"), std::string("\n"),
        std::string("nonsense\n")}) {
    INFO(tail);
    write_text(dir / "m", kept + tail);
    {
      Metrics metrics(dir / "m", 2);
      CHECK(read_text(dir / "m") == kept);
      CHECK(metrics.has_evaluation(2));
      CHECK_FALSE(metrics.has_evaluation(4));
      metrics.add(3, {});
    }
    CHECK(read_text(dir / "m") == kept + eval_line(3));
  }
}

TEST_CASE("metrics that cannot be written name the path", "[run]") {
  CHECK_THAT(message_of<InputError>([] { Metrics("/no/such/m", 0); }),
             Catch::StartsWith("cannot write /no/such/m: "));
  CHECK_THAT(message_of<InputError>([] { Metrics("/dev/full", 0).add(1, {}); }),
             Catch::Contains("/dev/full"));
}

TEST_CASE("times read like a clock", "[run]") {
  CHECK(clock_text(0) == "0:00");
  CHECK(clock_text(59.6) == "1:00");
  CHECK(clock_text(3599) == "59:59");
  CHECK(clock_text(3725) == "1:02:05");
}

TEST_CASE("progress is plain lines, or a bar on one line", "[run]") {
  std::ostringstream plain, live;
  {
    Progress lines(plain, false, 0, 4), bar(live, true, 0, 4);
    for (Progress* progress : {&lines, &bar}) {
      progress->step(0.5, 32, 2.0);
      progress->step(0.25, 32, 1.0);
      progress->status_line();
      progress->line("Epoch");
    }
    CHECK(lines.seconds_left() == 2.0);
  }
  CHECK(plain.str() == "step 2/4  loss 0.250000  32.0 images/s  0:02 left\nEpoch\n");
  CHECK_THAT(live.str(), Catch::Contains("\r\x1b[KEpoch\n"));
  CHECK_THAT(live.str(),
             Catch::EndsWith("\r\x1b[K[============            ] step 2/4  loss 0.250000  "
                             "32.0 images/s  0:02 left\n"));
  CHECK(std::ranges::count(live.str(), '\n') == 2);
}

TEST_CASE("the handlers of signals are put back", "[rundir]") {
  const auto old = std::signal(SIGTERM, SIG_DFL);
  { StopSignal stop; }
  CHECK(std::signal(SIGTERM, old) == SIG_DFL);
}

TEST_CASE("runs that begin in one second have directories of their own", "[rundir]") {
  const TempDir dir;
  const fs::path before = fs::current_path();
  fs::current_path(dir.path());
  {
    const RunDir a = RunDir::create(""), b = RunDir::create(""), c = RunDir::create("");
    CHECK(a.path() != b.path());
    CHECK(b.path() != c.path());
    CHECK(a.path().parent_path() == "runs");
  }
  fs::current_path(before);
}

TEST_CASE("a link that leads nowhere is a file of another run", "[rundir]") {
  TempDir dir;
  fs::create_symlink(dir / "nowhere", dir / "model.safetensors");
  CHECK_THAT(message_of<InputError>([&] { RunDir::create(dir.path()); }),
             Catch::Contains("holds model.safetensors"));
}

TEST_CASE("an hour, a bar of no steps, and images a second", "[rundir]") {
  CHECK(clock_text(3600) == "1:00:00");
  std::ostringstream out;
  { Progress bar(out, true, 3, 4); }
  CHECK(out.str().empty());
  {
    Progress lines(out, false, 0, 4);
    for (int i = 0; i < 3; ++i) lines.step(0.5, 32, 2.0);
    lines.status_line();
  }
  CHECK_THAT(out.str(), Catch::Contains("  16.0 images/s  0:02 left"));
}
