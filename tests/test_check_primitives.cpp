// check_primitives as a user starts it.
#include <catch2/catch.hpp>

#include "core/device.h"
#include "tests/run_program.h"

using namespace tessera;

TEST_CASE("check_primitives without a GPU says so and exits with 3", "[program]") {
  const Finished result = run_program("check_primitives", {});
  if (has_gpu()) {
    CHECK(result.status == 0);
    CHECK(result.out.find("0 differ\n") != std::string::npos);
  } else {
    CHECK(result.status == 3);
    CHECK(result.out == "check_primitives: no GPU here, nothing was checked\n");
  }
  CHECK(result.err.empty());
}
