// Which kernels a process launches, for the test that no kernel is left out. Where the environment
// variable TESSERA_LAUNCH_LOG names a directory, every process writes a file there:
//   run <tab> executable <tab> arguments...
//   launch <tab> kernel's address - executable's <tab> capability <tab> threads <tab> shared bytes
// a line for each kind of launch.
#pragma once

namespace tessera::simt {

struct Launch;
void log_launch(const void* kernel, const Launch& launch);

}  // namespace tessera::simt
