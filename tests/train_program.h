// The program train from outside: a tiny run in a fresh directory, what it ends with, and a child
// that signals can be sent to.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <thread>

#include "apps/checkpoint.h"
#include "tests/paths.h"
#include "tests/run_program.h"
#include "tests/train_case.h"

namespace tessera {

using Words = std::vector<std::string>;

struct TrainRuns {
  TempDir dir;
  std::filesystem::path data = write_tiny_data(dir);

  // Flags of a new tiny run in `out`; `more` adds to the usual ones or replaces them.
  Words fresh(const std::string& out, const Words& more = {}) const {
    std::map<std::string, std::string> flags{{"--data", data.string()},
                                             {"--out", (dir / out).string()}};
    for (const auto& [name, value] : kTinyNetwork) flags["--" + name] = value;
    for (size_t i = 0; i < more.size(); i += 2) flags[more[i]] = more[i + 1];
    Words words;
    for (const auto& [flag, value] : flags) words.insert(words.end(), {flag, value});
    return words;
  }
  Words resume(const std::string& out, const Words& more = {}) const {
    Words words{"--resume", (dir / out).string()};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  std::string file(const std::string& out, const std::string& name) const {
    return read_text(dir / out / name);
  }
  // Updates in a run's checkpoint, which must be whole.
  int64_t checkpoint_step(const std::string& out) const {
    Stream stream(Device::open(DeviceType::cpu, 1));
    Trainer trainer(stream, tiny_options());
    return load_checkpoint(stream, trainer.model().parameters(),
                           dir / out / "checkpoint.safetensors", 21)
        .step;
  }
};

// Runs to the end with status 0.
inline Finished train(const Words& words) {
  const Finished run = run_program("train", words);
  INFO(run.err);
  CHECK(run.status == 0);
  CHECK(run.err.empty());
  return run;
}

// The one line that the program ends with, without "train: error: ".
inline std::string error_of(const Words& words, int status, const std::string& prefix = "") {
  const Finished run = run_program("train", words, prefix);
  CHECK(run.status == status);
  const std::string start = "train: error: ";
  CHECK(run.err.substr(0, start.size()) == start);
  CHECK(std::ranges::count(run.err, '\n') == 1);
  return run.err.size() > start.size() ? run.err.substr(start.size()) : "";
}

// train as a child that signals can be sent to.
class Child {
 public:
  explicit Child(const Words& words) {
    Words all{std::string(bin_dir()) + "/train"};
    all.insert(all.end(), words.begin(), words.end());
    std::vector<char*> argv;
    for (std::string& word : all) argv.push_back(word.data());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // it does not outlive the tests
    const int null = ::open("/dev/null", O_RDWR);
    for (int fd : {0, 1, 2}) dup2(null, fd);
    ::signal(SIGHUP, SIG_DFL);  // ignored where the tests run under nohup
    execv(argv[0], argv.data());
    _exit(127);
  }
  ~Child() {
    if (pid_ > 0) send(SIGKILL), wait();
  }
  void send(int number) const { ::kill(pid_, number); }
  // Exit status; 128 + signal when one ended it.
  int wait() {
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  bool running() const { return waitpid(pid_, nullptr, WNOHANG) == 0; }

 private:
  pid_t pid_;
};

// Waits until the file has content. False: the child ended before.
inline bool wait_for(const std::filesystem::path& path, const Child& child) {
  while (!std::filesystem::exists(path) || std::filesystem::file_size(path) == 0) {
    if (!child.running()) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

}  // namespace tessera
