// Ctrl-C (SIGINT) and SIGTERM as a question that a loop asks between its steps. The second signal
// ends the process at once.
#pragma once

#include <csignal>

namespace tessera {

// Handles the two signals while it lives. One at a time in a process.
class StopSignal {
 public:
  StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;
  ~StopSignal();

  // The signal that came, or 0.
  int received() const;

 private:
  struct sigaction old_interrupt_, old_terminate_;
};

}  // namespace tessera
