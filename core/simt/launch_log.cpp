#include "core/simt/launch_log.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <set>
#include <string>
#include <tuple>

#include "core/simt/launch.h"

extern "C" const char __executable_start;  // by the linker

namespace tessera::simt {
namespace {

class LaunchLog {
 public:
  LaunchLog() {
    const char* directory = std::getenv("TESSERA_LAUNCH_LOG");
    if (!directory) return;
    std::filesystem::create_directories(directory);
    // Process numbers come again: hence appended.
    file_.open(concat(directory, '/', getpid(), ".log"), std::ios::app);
    char executable[4096];
    const ssize_t length = readlink("/proc/self/exe", executable, sizeof executable);
    file_ << "run\t" << std::string(executable, length > 0 ? size_t(length) : 0);
    std::ifstream command("/proc/self/cmdline", std::ios::binary);
    std::string argument;
    std::getline(command, argument, '\0');  // the program's name
    while (std::getline(command, argument, '\0')) {
      std::ranges::replace_if(
          argument, [](unsigned char c) { return c < ' '; }, ' ');  // a line is a line
      file_ << '\t' << argument;
    }
    file_ << std::endl;
  }

  void add(const void* kernel, const Launch& launch) {
    if (!file_.is_open()) return;
    const auto offset = static_cast<const char*>(kernel) - &__executable_start;
    const Kind kind{offset, options().profile.capability, launch.block.count(),
                    launch.shared_bytes};
    std::lock_guard lock(mutex_);
    if (!seen_.insert(kind).second) return;
    // Flushed: a test may end its process in any way.
    std::apply([&](auto... values) { ((file_ << "launch") << ... << concat('\t', values)); }, kind);
    file_ << std::endl;
  }

 private:
  using Kind = std::tuple<ptrdiff_t, int, size_t, size_t>;
  std::mutex mutex_;
  std::set<Kind> seen_;
  std::ofstream file_;
};

LaunchLog& launch_log() {
  static LaunchLog log;
  return log;
}

// A process that launches nothing has a file, too: it ran.
[[maybe_unused]] const LaunchLog& at_start = launch_log();

}  // namespace

void log_launch(const void* kernel, const Launch& launch) { launch_log().add(kernel, launch); }

}  // namespace tessera::simt
