// What `train` does, from a parsed command line to a finished run directory.
#pragma once

#include <ostream>

#include "apps/train_options.h"

namespace tessera {

// Returns the exit status: 0, or 128 + the signal that stopped it. Progress goes to `out`; live:
// as a bar. Throws UsageError, InputError or Error with one line for the user.
int run_train(const CommandLine& line, std::ostream& out, bool live);

}  // namespace tessera
