// The directory of a run, with a lock so that one process at a time writes to it. Nothing in it is
// overwritten by another run.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace tessera {

class RunDir {
 public:
  // Makes `path` (with its parents) or takes an existing directory that holds no run. "": makes
  // runs/<date>-<time>. Throws InputError naming the path.
  static RunDir create(const std::filesystem::path& path);
  // Takes the directory of a run. Throws InputError when it is none, or locked.
  static RunDir reopen(const std::filesystem::path& path);

  RunDir(RunDir&& other) noexcept;
  RunDir& operator=(RunDir&&) = delete;
  ~RunDir();

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path config() const { return path_ / "config.json"; }
  std::filesystem::path metrics() const { return path_ / "metrics.jsonl"; }
  std::filesystem::path model() const { return path_ / "model.safetensors"; }
  std::filesystem::path checkpoint() const { return path_ / "checkpoint.safetensors"; }
  std::filesystem::path figure() const { return path_ / "figure.png"; }

  // Throws InputError naming the directory when its file system has fewer bytes left than these.
  void expect_space(uint64_t bytes) const;

  // Replaces config.json.
  void write_config(const std::string& text) const;

 private:
  explicit RunDir(std::filesystem::path path);  // takes the lock

  std::filesystem::path path_;
  int lock_;  // a file descriptor
};

}  // namespace tessera
