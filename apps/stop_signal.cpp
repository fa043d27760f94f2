#include "apps/stop_signal.h"

#include <unistd.h>

namespace tessera {
namespace {

// A handler has no argument to carry state in: the one variable of its kind.
volatile std::sig_atomic_t received_signal = 0;

extern "C" void on_stop_signal(int number) {
  if (received_signal != 0) _exit(128 + number);
  received_signal = number;
}

}  // namespace

StopSignal::StopSignal() {
  received_signal = 0;
  struct sigaction action {};
  action.sa_handler = on_stop_signal;
  action.sa_flags = SA_RESTART;
  for (size_t i = 0; i < kSignals.size(); ++i) {
    sigaction(kSignals[i], nullptr, &old_[i]);
    if (old_[i].sa_handler != SIG_IGN) sigaction(kSignals[i], &action, nullptr);
  }
}

StopSignal::~StopSignal() {
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &old_[i], nullptr);
}

int StopSignal::received() const { return received_signal; }

}  // namespace tessera
