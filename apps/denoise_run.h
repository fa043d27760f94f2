// What `denoise` does, from checked options to written files.
#pragma once

#include <ostream>

#include "apps/denoise_options.h"

namespace tessera {

// Denoises options.input into options.output and says on `out` what it wrote. Nothing is written
// unless every input could be read and no output exists (or options.force). Throws InputError or
// UsageError with one line that names the file, tensor or flag.
void run_denoise(const DenoiseOptions& options, std::ostream& out);

}  // namespace tessera
