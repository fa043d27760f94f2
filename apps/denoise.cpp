// denoise: a trained U-Net applied to images. Status 0, 1 when a file or the machine is at fault,
// 2 when the command line is.
#include <iostream>
#include <new>

#include "apps/denoise_run.h"
#include "core/check.h"

namespace {

int fail(const char* message, int status) {
  std::cerr << "denoise: error: " << message << '\n';
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const auto options = tessera::parse_denoise_options(argc, argv, std::cout);
    if (options) tessera::run_denoise(*options, std::cout);
    return 0;
  } catch (const tessera::UsageError& error) {
    return fail(error.what(), 2);
  } catch (const std::bad_alloc&) {
    return fail("the machine has not enough memory for this", 1);
  } catch (const std::exception& error) {
    return fail(error.what(), 1);
  }
}
