// train on disks that are full, fill up or may not be written to: tmpfs, which root may mount, in a
// namespace of this process, so that nothing is left of it.
#include <sched.h>
#include <sys/mount.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <future>

#include "core/simt/sanitizer.h"
#include "tests/train_program.h"

using namespace tessera;
namespace fs = std::filesystem;

namespace {

// A tmpfs over a directory while it lives.
class Disk {
 public:
  Disk(fs::path path, const std::string& size) : path_(std::move(path)) {
    fs::create_directory(path_);
    mounted_ = ::unshare(CLONE_NEWNS) == 0 &&
               ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
               ::mount("tmpfs", path_.c_str(), "tmpfs", 0, ("size=" + size).c_str()) == 0;
    if (!mounted_) WARN("skipped: no tmpfs can be mounted: " << std::strerror(errno));
  }
  Disk(const Disk&) = delete;
  ~Disk() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }
  void forbid_writing() const {
    REQUIRE(::mount("none", path_.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr) == 0);
  }
  void allow_writing() const {
    REQUIRE(::mount("none", path_.c_str(), nullptr, MS_REMOUNT, nullptr) == 0);
  }
  // Takes all but `left` bytes. They come back when the file is removed.
  fs::path fill(uint64_t left = 0) const {
    const fs::path filler = path_ / "filler";
    std::ofstream out(filler, std::ios::binary | std::ios::app);
    const std::string page(4096, 'x');
    while (fs::space(path_).free >= left + page.size() && (out << page << std::flush)) continue;
    return filler;
  }

 private:
  fs::path path_;
  bool mounted_ = false;
};

const Words kAlways{"--log-every", "1", "--checkpoint-every", "1"};

}  // namespace

TEST_CASE("a disk that is full is found before the first step", "[train][cli][disk]") {
  const TrainRuns c;
  const Disk disk(c.dir / "disk", "4M");
  if (!disk.mounted()) return;
  const std::string run = (c.dir / "disk" / "r").string();
  const fs::path filler = disk.fill();
  CHECK_THAT(error_of(c.fresh("disk/r"), 1), Catch::StartsWith("cannot write to " + run + ": ") &&
                                                 Catch::Contains(" 0 are free\n"));
  CHECK_FALSE(fs::exists(c.dir / "disk" / "r" / "config.json"));
  CHECK_FALSE(fs::exists(c.dir / "disk" / "r" / "metrics.jsonl"));
  fs::remove(filler);
  train(c.fresh("disk/r", {"--steps", "2"}));  // the directory is none of a run yet

  disk.fill(8192);  // room for less than another checkpoint
  CHECK_THAT(error_of(c.resume("disk/r", {"--steps", "4"}), 1),
             Catch::StartsWith("cannot write to " + run + ": checkpoint and model need "));
  // A checkpoint that is not replaced gives no room back.
  CHECK_THAT(error_of(c.resume("disk/r", {"--steps", "4", "--checkpoint-every", "0"}), 1),
             Catch::StartsWith("cannot write to " + run + ": checkpoint and model need "));
  CHECK(c.checkpoint_step("disk/r") == 2);
  CHECK(train(c.resume("disk/r")).out == run + " is at step 2 of 2 already: nothing to do\n");
  fs::remove(filler);
  train(c.resume("disk/r", {"--steps", "4"}));
}

TEST_CASE("a disk that may not be written to is found before the first step",
          "[train][cli][disk]") {
  const TrainRuns c;
  const Disk disk(c.dir / "disk", "4M");
  if (!disk.mounted()) return;
  train(c.fresh("disk/r", {"--steps", "2"}));
  disk.forbid_writing();
  for (const auto& [words, name] :
       {std::pair{c.fresh("disk/new"), "new"}, {c.resume("disk/r", {"--steps", "4"}), "r"}})
    CHECK(error_of(words, 1) == concat("cannot write to ", (c.dir / "disk" / name).string(),
                                       ": Read-only file system\n"));
  disk.allow_writing();
  CHECK(c.checkpoint_step("disk/r") == 2);
}

TEST_CASE("a disk that fills up while a run writes to it leaves the old checkpoint",
          "[train][cli][disk]") {
  const TrainRuns c;
  const Disk disk(c.dir / "disk", "4M");
  if (!disk.mounted()) return;
  const auto words = [&](const std::string& out, const std::string& steps) {
    Words all = kAlways;
    all.insert(all.end(), {"--steps", steps});
    return c.fresh(out, all);
  };
  const auto checkpoint = c.dir / "disk" / "r" / "checkpoint.safetensors";
  auto run = std::async(std::launch::async,
                        [&] { return run_program("train", words("disk/r", "1000000000")); });
  using namespace std::chrono_literals;
  while (!fs::exists(checkpoint) && run.wait_for(1ms) != std::future_status::ready) continue;
  // Again and again: a checkpoint that takes an old one's place gives that one's room back.
  const fs::path filler = c.dir / "disk" / "filler";
  while (run.wait_for(1ms) != std::future_status::ready) disk.fill();
  const Finished finished = run.get();
  CHECK(finished.status == 1);
  CHECK_THAT(finished.err, Catch::StartsWith("train: error: cannot write " +
                                             (c.dir / "disk" / "r").string() + "/") &&
                               Catch::EndsWith(": No space left on device\n"));
  const int64_t step = c.checkpoint_step("disk/r");
  CHECK(step >= 1);
  fs::remove(filler);
  const std::string steps = std::to_string(step + 3);
  train(c.resume("disk/r", {"--steps", steps}));
  train(words("whole", steps));
  for (const char* name : {"model.safetensors", "checkpoint.safetensors", "figure.png"})
    CHECK(c.file("disk/r", name) == c.file("whole", name));
}

#ifndef TESSERA_TSAN  // which maps a file of its own, longer than the limit
TEST_CASE("a disk that fills up leaves the old checkpoint", "[train][cli]") {
  TrainRuns c;
  train(c.fresh("r", {"--steps", "2"}));
  const std::string before = c.file("r", "checkpoint.safetensors");
  // 8 blocks of 512 or 1024 bytes stand for a full disk; the signal that comes with it is ignored.
  const std::string message =
      error_of(c.resume("r", {"--steps", "4"}), 1, "trap '' XFSZ; ulimit -f 8;");
  CHECK_THAT(message, Catch::Contains("cannot write") && Catch::Contains(".safetensors"));
  CHECK(c.file("r", "checkpoint.safetensors") == before);
  train(c.resume("r", {"--steps", "4"}));
}
#endif
