#include "layers/unet.h"

namespace tessera {

void UNetConfig::check() const {
  const auto within = [](const char* flag, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high)
      throw UsageError(concat(flag, " is ", value, ", expected ", low, " to ", high));
  };
  within("--levels", levels, 1, 8);
  within("--base", base, 1, 4096);
  within("--groups", groups, 1, 4096);
  within("--time-dim", time_dim, 2, 4096);
  if (channels != 1 && channels != 3)
    throw UsageError(concat("--channels is ", channels, ", expected 1 (grey) or 3 (colour)"));
  if (base % groups != 0)
    throw UsageError(concat("--base ", base, " is not a multiple of --groups ", groups));
  if (time_dim % 2 != 0)
    throw UsageError(concat("--time-dim is ", time_dim, ", expected an even number"));
}

void UNetConfig::check_image(int64_t height, int64_t width) const {
  const int64_t unit = int64_t{1} << levels;
  if (height < unit || width < unit || height % unit != 0 || width % unit != 0)
    throw UsageError(concat("image size ", height, "x", width, " does not fit ", levels,
                            " levels: expected positive multiples of ", unit));
}

}  // namespace tessera
