// What is multiplied with the zeros around an image or past a filter must not matter: a NaN stays
// where it has a part in the sums.
#include <catch2/catch.hpp>
#include <cmath>

#include "tests/conv_runs.h"

using namespace tessera;
using namespace tessera::conv_runs;

namespace {

const ConvCase kCases[] = {{{1, 1, 1}, {1, 9, 11, 20}, {12, 3, 3, 20}},
                           {{1, 1, 1}, {2, 9, 11, 40}, {24, 3, 3, 40}},
                           {{2, 0, 0}, {1, 8, 10, 8}, {8, 2, 2, 8}},
                           {{1, 1, 1}, {1, 10, 12, 40}, {8, 3, 3, 40}, 24}};

std::vector<Values> on_simt(const ConvCase& c, const Path& mode, int capability,
                            const std::string& nan_in) {
  simt::Options options;
  options.profile = simt::profile_of(capability);
  const simt::ScopedOptions scope(options);
  Stream stream(poisoned(DeviceType::simt));
  stream.math = mode.math;
  return run(stream, c, mode.dtype, Numbers::Integers, mode.dtype, nan_in);
}

Values without_nans(Values values) {
  for (double& x : values.data)
    if (std::isnan(x)) x = 12345;
  return values;
}

}  // namespace

TEST_CASE("a convolution's NaN stays in its windows", "[cuda]") {
  Stream oracle(poisoned_cpu());
  for (const ConvCase& c : kCases)
    for (const Path& mode : kPaths)
      for (const char* name : {"x", "dy", "low"}) {
        if (c.A == 0 && std::string(name) == "low") continue;
        std::vector<Values> right = run(oracle, c, DType::f64, Numbers::Integers, mode.dtype, name);
        if (mode.dtype == DType::bf16)
          for (size_t i = 0; i + 2 < right.size(); ++i) right[i] = as_bf16(right[i]);
        for (int capability : {75, 80, 90}) {
          INFO(mode.name << " on " << capability << ": x " << c.x << ", NaN in " << name);
          const auto got = on_simt(c, mode, capability, name);
          for (size_t i = 0; i < right.size(); ++i)
            CHECK(difference(without_nans(got[i]), without_nans(right[i]), 0) == "");
        }
      }
}

// A NaN may meet the zeros of padding, but only where its filter and its channel have a part.
TEST_CASE("a filter's NaN stays in its channels", "[cuda]") {
  const auto channels_but_first = [](const Values& values) {
    return part(values, 1, values.shape[3] - 1);
  };
  Stream oracle(poisoned_cpu());
  for (const ConvCase& c : kCases)
    for (const Path& mode : kPaths) {
      const std::vector<Values> right = expected(oracle, c, mode);  // without a NaN
      for (int capability : {75, 80, 90}) {
        INFO(mode.name << " on " << capability << ": x " << c.x);
        const auto got = on_simt(c, mode, capability, "w");
        const size_t y = c.A ? 2 : 1;
        for (const size_t i : {size_t{0}, y}) {  // dx or dlow, y
          INFO("result " << i);
          CHECK(difference(channels_but_first(got[i]), channels_but_first(right[i]), 0) == "");
        }
      }
    }
}
