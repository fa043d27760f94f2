// What every program's main does around its work: standard descriptors that are open, and one line
// for an error.
#pragma once

#include <functional>

namespace tessera {

// Runs `body` and returns its status. An exception becomes the line "<name>: error: ..." on stderr
// and status 2 (UsageError) or 1. SIGPIPE is ignored: who stops reading the output does not stop
// the work.
int guarded_main(const char* name, const std::function<int()>& body);

}  // namespace tessera
