// The lock is flock() on the file .lock: the system drops it when the process ends, however that
// happens, so that no stale lock can remain.
#include "apps/run_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "core/file.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const fs::path& path, const std::string& reason) {
  throw InputError(concat("cannot write to ", path.string(), ": ", reason));
}

// Makes runs/<date>-<time>, with a number behind it when that exists.
fs::path make_default() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char name[32];
  std::strftime(name, sizeof name, "%Y%m%d-%H%M%S", &local);
  std::error_code error;
  fs::create_directory("runs", error);
  for (int i = 1; !error; ++i) {
    const fs::path path = fs::path("runs") / (i == 1 ? name : concat(name, '-', i));
    if (fs::create_directory(path, error)) return path;
  }
  fail("runs", error.message());
}

}  // namespace

RunDir RunDir::create(const fs::path& path) {
  if (path.empty()) return RunDir(make_default());
  std::error_code error;
  fs::create_directories(path, error);
  if (error) fail(path, error.message());
  RunDir run(path);
  for (const fs::path& file :
       {run.config(), run.metrics(), run.model(), run.checkpoint(), run.figure()})
    if (fs::exists(fs::symlink_status(file, error)))
      throw InputError(concat("--out ", path.string(), " holds ", file.filename().string(),
                              " of another run: give a new directory, or go on with --resume ",
                              path.string()));
  return run;
}

RunDir RunDir::reopen(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path / "config.json", error))
    throw InputError(concat("--resume ", path.string(), " is not the directory of a run: it has no",
                            " config.json"));
  return RunDir(path);
}

RunDir::RunDir(fs::path path) : path_(std::move(path)) {
  lock_ = ::open((path_ / ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (lock_ < 0) fail(path_, std::generic_category().message(errno));
  if (::flock(lock_, LOCK_EX | LOCK_NB) == 0) return;
  const int reason = errno;
  ::close(lock_);
  fail(path_, reason == EWOULDBLOCK ? "another process is writing to this run"
                                    : std::generic_category().message(reason));
}

RunDir::RunDir(RunDir&& other) noexcept
    : path_(std::move(other.path_)), lock_(std::exchange(other.lock_, -1)) {}

RunDir::~RunDir() {
  if (lock_ >= 0) ::close(lock_);
}

void RunDir::expect_space(uint64_t bytes) const {
  std::error_code error;
  const fs::space_info space = fs::space(path_, error);
  if (error || space.capacity == 0) return;  // some file systems do not say
  const uint64_t left = ::geteuid() == 0 ? space.free : space.available;
  if (left < bytes)
    fail(path_, concat("checkpoint and model need ", bytes, " bytes more, ", left, " are free"));
}

void RunDir::write_config(const std::string& text) const {
  atomic_write(config(), [&](FileWriter& out) { out.write(text.data(), text.size()); });
}

}  // namespace tessera
