// kill -9 at random moments: the run goes on, and ends with the bits of one that was left alone.
#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <random>

#include "tests/json_lines.h"
#include "tests/train_program.h"

using namespace tessera;
namespace fs = std::filesystem;

namespace {

// `./run soak` sets it.
int kills_wanted() {
  const char* text = std::getenv("TESSERA_KILLS");
  return text ? std::atoi(text) : 50;
}

// What a checkpoint is until the next one takes its place. 0: there is none.
ino_t checkpoint_file(const TrainRuns& c, const std::string& out) {
  struct stat status {};
  return ::stat((c.dir / out / "checkpoint.safetensors").c_str(), &status) == 0 ? status.st_ino : 0;
}

// Some moment: any, the start of the program included, or one soon after a new checkpoint, which
// comes on a slow machine, too.
void wait_a_while(const TrainRuns& c, const std::string& out, const Child& child,
                  std::mt19937& random) {
  if (random() % 2 == 0) {
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 200'000));
    return;
  }
  const ino_t before = checkpoint_file(c, out);
  while (checkpoint_file(c, out) == before && child.running())
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::this_thread::sleep_for(std::chrono::microseconds(random() % 20'000));
}

// Starts the run, or goes on with it where there is one. Where not, --resume says so.
Words start_or_resume(const TrainRuns& c, const std::string& out) {
  if (fs::exists(c.dir / out / "config.json")) return c.resume(out);
  CHECK(error_of(c.resume(out), 1) == concat("--resume ", (c.dir / out).string(),
                                             " is not the directory of a run: it has no"
                                             " config.json\n"));
  return c.fresh(out, {"--steps", "1000000000", "--log-every", "1", "--checkpoint-every", "1"});
}

// Kills a run so many times, and lets it end.
void kill_and_compare(const TrainRuns& c, const std::string& out, int kills, std::mt19937& random) {
  int64_t step = 0;
  for (int kill = 0; kill < kills; ++kill) {
    CAPTURE(out, kill);
    Child child(start_or_resume(c, out));
    wait_a_while(c, out, child, random);
    REQUIRE(child.running());
    child.send(SIGKILL);
    CHECK(child.wait() == 128 + SIGKILL);
    if (!fs::exists(c.dir / out / "checkpoint.safetensors")) {
      CHECK(step == 0);
      continue;
    }
    const int64_t now = c.checkpoint_step(out);
    CHECK(now >= step);
    step = now;
  }
  const Words last{"--steps", std::to_string(step + 1), "--log-every", "1"};
  Words words = start_or_resume(c, out);
  words.insert(words.end(), last.begin(), last.end());
  train(words);
  train(c.fresh(out + "-whole", last));
  for (const char* name : {"model.safetensors", "checkpoint.safetensors", "figure.png"})
    CHECK(c.file(out, name) == c.file(out + "-whole", name));
  int64_t expected = 1;
  for (const auto& line : lines_of(c.file(out, "metrics.jsonl")))
    if (!line.contains("eval")) CHECK(line["step"] == expected++);
  CHECK(expected == step + 2);
}

}  // namespace

TEST_CASE("kill -9 at any moment leaves a run that goes on", "[train][cli][soak]") {
  constexpr int kKillsPerRun = 10;
  std::mt19937 random(1);
  int left = kills_wanted();
  REQUIRE(left > 0);
  for (int run = 0; left > 0; ++run) {
    const TrainRuns c;
    kill_and_compare(c, concat("run", run), std::min(left, kKillsPerRun), random);
    left -= kKillsPerRun;
  }
}
