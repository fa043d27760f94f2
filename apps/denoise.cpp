// denoise: a trained U-Net applied to images. Status 0, 1 when a file or the machine is at fault,
// 2 when the command line is.
#include <iostream>

#include "apps/denoise_run.h"
#include "apps/guarded_main.h"

int main(int argc, char** argv) {
  return tessera::guarded_main("denoise", [&] {
    const auto options = tessera::parse_denoise_options(argc, argv, std::cout);
    if (options) tessera::run_denoise(*options, std::cout);
    return 0;
  });
}
