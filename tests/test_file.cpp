// Atomic writes leave the old file or the new one and nothing else; errors name path and reason.
#include <pthread.h>
#include "core/file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <csignal>
#include <iterator>
#include <thread>

#include "core/check.h"
#include "core/simt/sanitizer.h"
#include "tests/temp_dir.h"

using namespace tessera;
namespace fs = std::filesystem;

namespace {

void write_atomically(const fs::path& path, const std::string& content) {
  atomic_write(path, [&](FileWriter& out) { out.write(content.data(), content.size()); });
}

size_t files_in(const TempDir& dir) {
  return std::distance(fs::directory_iterator(dir.path()), fs::directory_iterator());
}

// Lowers one of this process's resource limits while it lives.
class Limit {
 public:
  Limit(__rlimit_resource resource, rlim_t value) : resource_(resource) {
    getrlimit(resource_, &old_);
    const rlimit lower{value, old_.rlim_max};
    setrlimit(resource_, &lower);
  }
  ~Limit() { setrlimit(resource_, &old_); }

 private:
  __rlimit_resource resource_;
  rlimit old_{};
};

}  // namespace

TEST_CASE("atomic_write creates and replaces a file", "[file]") {
  TempDir dir;
  write_atomically(dir / "a", "one");
  CHECK(read_text(dir / "a") == "one");
  write_atomically(dir / "a", "2");
  CHECK(read_text(dir / "a") == "2");
  write_atomically(dir / "a", "");
  CHECK(read_text(dir / "a").empty());
  CHECK(files_in(dir) == 1);
}

TEST_CASE("atomic_write appends the pieces in order", "[file]") {
  TempDir dir;
  atomic_write(dir / "a", [](FileWriter& out) {
    out.write("ab", 2);
    out.write("", 0);
    out.write("cde", 3);
  });
  CHECK(read_text(dir / "a") == "abcde");
}

TEST_CASE("atomic_write replaces what a killed writer left behind", "[file]") {
  TempDir dir;
  write_text(dir / ".a.tmp", "much longer than the new content");
  write_atomically(dir / "a", "new");
  CHECK(read_text(dir / "a") == "new");
  CHECK(files_in(dir) == 1);
}

TEST_CASE("a failing callback leaves the old file and no temporary file", "[file]") {
  TempDir dir;
  write_text(dir / "a", "old");
  const auto fill = [](FileWriter& out) {
    out.write("half", 4);
    throw Error("stopped");
  };
  CHECK(message_of<Error>([&] { atomic_write(dir / "a", fill); }) == "stopped");
  CHECK(read_text(dir / "a") == "old");
  CHECK(files_in(dir) == 1);
}

TEST_CASE("a write that fails midway leaves the old file and no temporary file", "[file]") {
  TempDir dir;
  write_text(dir / "a", "old");
  const std::string large(100'000, 'x');
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  std::string message;
  {
    Limit limit(RLIMIT_FSIZE, 65'536);  // stands for a disk that is full after 64 KiB
    message = message_of<InputError>([&] { write_atomically(dir / "a", large); });
  }
  std::signal(SIGXFSZ, old_handler);
  CHECK(message == "cannot write " + (dir / "a").string() + ": File too large");
  CHECK(read_text(dir / "a") == "old");
  CHECK(files_in(dir) == 1);
}

TEST_CASE("a full device is an error", "[file]") {
  const int fd = ::open("/dev/full", O_WRONLY);
  REQUIRE(fd >= 0);
  FileWriter writer(fd, "out/model.safetensors");
  CHECK(message_of<InputError>([&] { writer.write("x", 1); }) ==
        "cannot write out/model.safetensors: No space left on device");
  ::close(fd);
}

TEST_CASE("atomic_write names the path and the reason", "[file]") {
  TempDir dir;
  const fs::path missing = dir / "no" / "such";
  CHECK(message_of<InputError>([&] { write_atomically(missing, "x"); }) ==
        "cannot write " + missing.string() + ": No such file or directory");
  fs::create_directory(dir / "d");
  CHECK(message_of<InputError>([&] { write_atomically(dir / "d", "x"); }) ==
        "cannot write " + (dir / "d").string() + ": it is not a regular file");
  CHECK(message_of<InputError>([&] { write_atomically("/dev/null", "x"); }) ==
        "cannot write /dev/null: it is not a regular file");
  if (::geteuid() != 0) {  // root may write anywhere
    fs::permissions(dir / "d", fs::perms::owner_read | fs::perms::owner_exec);
    CHECK(message_of<InputError>([&] { write_atomically(dir / "d" / "a", "x"); }) ==
          "cannot write " + (dir / "d" / "a").string() + ": Permission denied");
    fs::permissions(dir / "d", fs::perms::owner_all);
  }
}

TEST_CASE("read_file gives a file's bytes", "[file]") {
  TempDir dir;
  std::string content = "text\n";
  content.push_back('\0');
  content.push_back('\xff');
  write_text(dir / "a", content);
  const auto bytes = read_file(dir / "a");
  CHECK(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()) == content);
  write_text(dir / "empty", "");
  CHECK(read_file(dir / "empty").empty());
}

TEST_CASE("read_file names the path and the reason", "[file]") {
  TempDir dir;
  const auto message = [](const fs::path& path, uint64_t limit = UINT64_MAX) {
    return message_of<InputError>([&] { read_file(path, limit); });
  };
  CHECK(message(dir / "no") ==
        "cannot read " + (dir / "no").string() + ": No such file or directory");
  CHECK(message(dir.path()) == "cannot read " + dir.path().string() + ": Is a directory");
  CHECK(message("/dev/null") == "cannot read /dev/null: it is not a regular file");
  REQUIRE(::mkfifo((dir / "pipe").c_str(), 0600) == 0);
  CHECK(message(dir / "pipe") ==
        "cannot read " + (dir / "pipe").string() + ": it is not a regular file");
  write_text(dir / "a", "12345");
  CHECK(message(dir / "a", 4) ==
        "cannot read " + (dir / "a").string() + ": it is 5 bytes long, at most 4 are expected");
  CHECK(message(dir / "a", 5).empty());
  if (::geteuid() != 0) {
    fs::permissions(dir / "a", fs::perms::none);
    CHECK(message(dir / "a") == "cannot read " + (dir / "a").string() + ": Permission denied");
  }
}

#if !defined(TESSERA_ASAN) && !defined(TESSERA_TSAN)  // their own address space is above the limit
TEST_CASE("a file larger than memory is an error", "[file]") {
  TempDir dir;
  write_text(dir / "a", "");
  constexpr int64_t kBytes = int64_t{1} << 40;
  REQUIRE(::truncate((dir / "a").c_str(), kBytes) == 0);  // sparse: takes no disk
  Limit limit(RLIMIT_AS, kBytes);
  CHECK(message_of<InputError>([&] { read_file(dir / "a"); }) ==
        "cannot read " + (dir / "a").string() + ": Cannot allocate memory");
}
#endif

TEST_CASE("a rename that fails, and a link where the new file is made", "[file]") {
  TempDir dir;
  CHECK(message_of<InputError>([&] {
          atomic_write(dir / "a", [&](FileWriter& out) {
            out.write("x", 1);
            fs::create_directory(dir / "a");
          });
        }) == "cannot write " + (dir / "a").string() + ": Is a directory");
  CHECK_FALSE(fs::exists(dir / ".a.tmp"));
  write_text(dir / "victim", "old");
  fs::create_symlink(dir / "victim", dir / ".b.tmp");
  CHECK_THAT(message_of<InputError>(
                 [&] { atomic_write(dir / "b", [](FileWriter& out) { out.write("x", 1); }); }),
             Catch::Contains("symbolic links"));
  CHECK(read_text(dir / "victim") == "old");
}

TEST_CASE("a signal does not end a write", "[file]") {
  struct sigaction action {
  }, old{};
  action.sa_handler = [](int) {};  // without SA_RESTART
  sigaction(SIGALRM, &action, &old);
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const std::string text(200'000, 'x');
  std::string got;
  const pthread_t writer = pthread_self();
  std::thread reader([&] {
    for (int i = 0; i < 5; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(20)), pthread_kill(writer, SIGALRM);
    char buffer[4096];
    for (ssize_t n; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;)
      got.append(buffer, size_t(n));
  });
  const std::string message =
      message_of<InputError>([&] { FileWriter(ends[1], "pipe").write(text.data(), text.size()); });
  ::close(ends[1]);
  reader.join();
  ::close(ends[0]);
  sigaction(SIGALRM, &old, nullptr);
  CHECK(message == "");
  CHECK(got == text);
}
