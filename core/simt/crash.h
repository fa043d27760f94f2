// Names kernel, block and thread when the program crashes in one: a wild pointer, a stack that is
// too small, or what a sanitizer found.
#pragma once

#include <signal.h>

namespace tessera::simt {

// Reports crashes of the scope, before whoever did it until now.
class CrashReport {
 public:
  CrashReport();
  ~CrashReport();
  CrashReport(const CrashReport&) = delete;
};

// A stack of its own for the report of the calling host thread, in a scope.
class CrashStack {
 public:
  CrashStack();
  ~CrashStack();
  CrashStack(const CrashStack&) = delete;

 private:
  stack_t saved_{};
};

}  // namespace tessera::simt
