#pragma once

namespace tessera::gpu {

// What the code that the current GPU runs of this program was compiled for, 10 * major + minor:
// machine code, or PTX that may be older than the GPU. 0: there is none. Throws Error when CUDA
// cannot say.
int code_for_this_gpu();

}  // namespace tessera::gpu
