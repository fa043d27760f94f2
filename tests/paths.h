// Folders of this clone and of this build. Named in paths.cpp alone, or ccache would take the same
// test in another clone for another one.
#pragma once

namespace tessera {

const char* test_dir();  // this one
const char* bin_dir();   // of the programs

}  // namespace tessera
