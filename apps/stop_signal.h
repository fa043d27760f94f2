// Ctrl-C (SIGINT), SIGTERM and SIGHUP (a terminal that went away) as a question that a loop asks
// between its steps. The second signal ends the process at once.
#pragma once

#include <csignal>

namespace tessera {

// Handles the signals while it lives; SIGHUP only where it is not ignored (nohup). One at a time in
// a process.
class StopSignal {
 public:
  StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;
  ~StopSignal();

  // The signal that came, or 0.
  int received() const;

 private:
  struct sigaction old_interrupt_, old_terminate_, old_hangup_;
};

}  // namespace tessera
