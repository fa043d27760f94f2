#include "tests/paths.h"

namespace tessera {

const char* test_dir() { return TESSERA_TEST_DIR; }
const char* bin_dir() { return TESSERA_BIN_DIR; }

}  // namespace tessera
