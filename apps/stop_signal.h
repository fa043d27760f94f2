// Ctrl-C (SIGINT), SIGTERM and SIGHUP (a terminal that went away) as a question that a loop asks
// between its steps. The second signal ends the process at once.
#pragma once

#include <array>
#include <csignal>

namespace tessera {

// Handles the signals while it lives, but those that are ignored (SIGHUP by nohup, SIGINT in the
// background of a script). One at a time in a process.
class StopSignal {
 public:
  StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;
  ~StopSignal();

  // The signal that came, or 0.
  int received() const;

 private:
  static constexpr std::array<int, 3> kSignals{SIGINT, SIGTERM, SIGHUP};
  std::array<struct sigaction, 3> old_;
};

}  // namespace tessera
