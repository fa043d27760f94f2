// train: a U-Net that learns to remove noise from images. Status 0, 2 when the command line is at
// fault, 1 when anything else is, 130 or 143 when a signal stopped it.
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <new>

#include "apps/train_run.h"
#include "core/check.h"

namespace {

int fail(std::string message, int status) {
  std::ranges::replace(message, '\n', ' ');  // an error is one line
  std::cerr << "train: error: " << message << '\n';
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const tessera::CommandLine line = tessera::parse_command_line(argc, argv);
    if (!line.answer) return tessera::run_train(line, std::cout, isatty(STDOUT_FILENO) != 0);
    std::cout << *line.answer;
    return 0;
  } catch (const tessera::UsageError& error) {
    return fail(error.what(), 2);
  } catch (const std::bad_alloc&) {
    return fail("the machine has not enough memory for this", 1);
  } catch (const std::exception& error) {
    return fail(error.what(), 1);
  }
}
