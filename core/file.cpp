// POSIX files: every call is checked, short and interrupted reads and writes are continued.
// Order of an atomic write: write, fsync(file), close, rename, fsync(directory). Without the first
// fsync the name could reach the disk before the data, without the second it may never get there.
#include "core/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "core/check.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const char* verb, const fs::path& path, int error) {
  throw InputError(
      concat("cannot ", verb, " ", path.string(), ": ", std::generic_category().message(error)));
}

// Owns a descriptor.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  // close() may report a write that failed late. Returns its status; never closes twice.
  int close() { return ::close(std::exchange(fd_, -1)); }

 private:
  int fd_;
};

// Removes a file unless told to keep it.
class Remover {
 public:
  explicit Remover(fs::path path) : path_(std::move(path)) {}
  Remover(const Remover&) = delete;
  Remover& operator=(const Remover&) = delete;
  ~Remover() {
    if (!keep_) ::unlink(path_.c_str());
  }
  void keep() { keep_ = true; }

 private:
  fs::path path_;
  bool keep_ = false;
};

// Makes a rename in `directory` durable. Some file systems cannot sync a directory: EINVAL.
void sync_directory(const fs::path& directory, const fs::path& path) {
  Descriptor descriptor(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (descriptor.get() < 0) fail("write", path, errno);
  if (::fsync(descriptor.get()) != 0 && errno != EINVAL) fail("write", path, errno);
}

}  // namespace

void FileWriter::write(const void* data, size_t bytes) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(fd_, next, bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("write", path_, errno);
    if (written == 0) fail("write", path_, ENOSPC);
    next += written;
    bytes -= static_cast<size_t>(written);
  }
}

void atomic_write(const fs::path& path, const std::function<void(FileWriter&)>& fill) {
  std::error_code error;
  const fs::file_status old = fs::status(path, error);
  if (fs::exists(old) && !fs::is_regular_file(old)) {
    throw InputError(concat("cannot write ", path.string(), ": it is not a regular file"));
  }
  const fs::path directory = path.has_parent_path() ? path.parent_path() : fs::path(".");
  const fs::path temporary = directory / concat(".", path.filename().string(), ".tmp");

  Descriptor file(
      ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666));
  if (file.get() < 0) fail("write", path, errno);
  Remover remover(temporary);
  FileWriter writer(file.get(), path);
  fill(writer);
  if (::fsync(file.get()) != 0) fail("write", path, errno);
  if (file.close() != 0) fail("write", path, errno);
  if (::rename(temporary.c_str(), path.c_str()) != 0) fail("write", path, errno);
  remover.keep();
  sync_directory(directory, path);
}

std::vector<std::byte> read_file(const fs::path& path, uint64_t max_bytes) {
  // O_NONBLOCK: a named pipe must give an error here, not wait for its writer.
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) fail("read", path, errno);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) fail("read", path, errno);
  if (S_ISDIR(status.st_mode)) fail("read", path, EISDIR);
  if (!S_ISREG(status.st_mode)) {
    throw InputError(concat("cannot read ", path.string(), ": it is not a regular file"));
  }
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size > max_bytes) {
    throw InputError(concat("cannot read ", path.string(), ": it is ", size,
                            " bytes long, at most ", max_bytes, " are expected"));
  }

  std::vector<std::byte> content;
  try {
    content.resize(size);
  } catch (const std::exception&) {  // bad_alloc or length_error
    fail("read", path, ENOMEM);
  }
  size_t filled = 0;
  while (filled < content.size()) {
    const ssize_t got = ::read(file.get(), content.data() + filled, content.size() - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("read", path, errno);
    if (got == 0) {
      throw InputError(concat("cannot read ", path.string(), ": it ended at byte ", filled,
                              ", expected ", content.size()));
    }
    filled += static_cast<size_t>(got);
  }
  return content;
}

}  // namespace tessera
