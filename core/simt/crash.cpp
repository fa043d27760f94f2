#include "core/simt/crash.h"

#include <unistd.h>

#include <string>

#include "core/simt/block.h"
#include "core/simt/sanitizer.h"

namespace tessera::simt {
namespace {

void print_place(const char* what) {
  const std::string text = concat(what, " in ", current_place(), '\n');
  [[maybe_unused]] const auto written = write(STDERR_FILENO, text.data(), text.size());
}

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE};
struct sigaction saved_actions[std::size(kSignals)];

// The process dies anyway: that strings are not safe in a handler does not matter.
void handle(int number) {
  if (current_thread) print_place(number == SIGFPE ? "Arithmetic exception" : "Invalid access");
  for (size_t i = 0; i < std::size(kSignals); ++i)
    sigaction(kSignals[i], &saved_actions[i], nullptr);  // and the instruction is run again
}

}  // namespace

CrashReport::CrashReport() {
#ifdef TESSERA_ASAN
  __asan_set_error_report_callback([](const char*) {
    if (current_thread) print_place("AddressSanitizer: the error above is");
  });
#endif
  struct sigaction action {};
  action.sa_handler = handle;
  action.sa_flags = SA_ONSTACK;
  for (size_t i = 0; i < std::size(kSignals); ++i)
    sigaction(kSignals[i], &action, &saved_actions[i]);
}
CrashReport::~CrashReport() {
  for (size_t i = 0; i < std::size(kSignals); ++i)
    sigaction(kSignals[i], &saved_actions[i], nullptr);
}

CrashStack::CrashStack() {
  alignas(64) thread_local char memory[64 * 1024];  // AddressSanitizer wants it aligned
  stack_t mine{};
  mine.ss_sp = memory;
  mine.ss_size = sizeof memory;
  sigaltstack(&mine, &saved_);
}
CrashStack::~CrashStack() { sigaltstack(&saved_, nullptr); }

}  // namespace tessera::simt
