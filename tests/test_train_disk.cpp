// train on a disk that fills up.
#include <catch2/catch.hpp>

#include "tests/train_program.h"

using namespace tessera;

TEST_CASE("a disk that fills up leaves the old checkpoint", "[train][cli]") {
  TrainRuns c;
  train(c.fresh("r", {"--steps", "2"}));
  const std::string before = c.file("r", "checkpoint.safetensors");
  // 8 blocks of 512 or 1024 bytes stand for a full disk; the signal that comes with it is ignored.
  const std::string message =
      error_of(c.resume("r", {"--steps", "4"}), 1, "trap '' XFSZ; ulimit -f 8;");
  CHECK_THAT(message, Catch::Contains("cannot write") && Catch::Contains(".safetensors"));
  CHECK(c.file("r", "checkpoint.safetensors") == before);
  train(c.resume("r", {"--steps", "4"}));
}
