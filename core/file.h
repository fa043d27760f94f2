// Whole files, read and written safely. A file is replaced atomically: its new content goes to a
// temporary file in the same directory, which is synced and then renamed over the old one, so that
// whatever happens (disk full, crash, kill -9) the old file or the new one is there, never a mix.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <vector>

namespace tessera {

// Where the content of an atomic_write goes. Writes straight through: hand it large pieces.
class FileWriter {
 public:
  // fd: open for writing, owned by the caller. path: the name for errors.
  FileWriter(int fd, std::filesystem::path path) : fd_(fd), path_(std::move(path)) {}

  // Appends all the bytes or throws InputError naming the path and the system's reason.
  void write(const void* data, size_t bytes);

 private:
  int fd_;
  std::filesystem::path path_;
};

// Replaces `path` by what `fill` writes. If anything fails, `fill` included, the exception passes,
// the temporary file (.NAME.tmp beside it) is removed and an old file stays as it was. Throws
// InputError naming the path and the system's reason. Never replaces what is not a regular file.
// One writer at a time per path.
void atomic_write(const std::filesystem::path& path, const std::function<void(FileWriter&)>& fill);

// The content of a regular file of at most max_bytes. Throws InputError naming the path.
std::vector<std::byte> read_file(const std::filesystem::path& path,
                                 uint64_t max_bytes = UINT64_MAX);

}  // namespace tessera
