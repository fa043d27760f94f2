#pragma once

namespace tessera::gpu {

// Whether this program holds machine code, or PTX, for the architecture of the current GPU. Throws
// Error when CUDA cannot say.
bool has_code_for_this_gpu();

}  // namespace tessera::gpu
