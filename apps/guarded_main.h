// What every program's main does around its work: standard descriptors that are open, and one line
// for an error.
#pragma once

#include <functional>

namespace tessera {

// Runs `body` and returns its status. An exception becomes the line "<name>: error: ..." on stderr
// and status 2 (UsageError) or 1; so does output that could not be written. But who stops reading
// it does not stop the work.
int guarded_main(const char* name, const std::function<int()>& body);

}  // namespace tessera
