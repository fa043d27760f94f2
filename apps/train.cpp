// train: a U-Net that learns to remove noise from images. Status 0, 2 when the command line is at
// fault, 1 when anything else is, 128 + the signal when one stopped it.
#include <unistd.h>

#include <iostream>

#include "apps/guarded_main.h"
#include "apps/train_run.h"

int main(int argc, char** argv) {
  return tessera::guarded_main("train", [&] {
    const tessera::CommandLine line = tessera::parse_command_line(argc, argv);
    if (!line.answer) return tessera::run_train(line, std::cout, isatty(STDOUT_FILENO) != 0);
    std::cout << *line.answer;
    return 0;
  });
}
