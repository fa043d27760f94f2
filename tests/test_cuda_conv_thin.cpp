// Convolutions between one channel and many (kernels/cuda/conv_thin.h) where the case table does
// not come: every profile, addresses that allow no packs, NaNs, and parts of several tiles. Sums of
// products of small integers are exact whatever their order.
#include <catch2/catch.hpp>
#include <cmath>

#include "core/simt/options.h"
#include "kernels/kernels.h"
#include "tests/op_runner.h"

using namespace tessera;

namespace {

struct ThinCase {
  ConvSpec spec;
  Shape x, w;
};

// How tensors are made: `shift` elements into their memory, and with a NaN in x or dy, in the first
// channel of a pixel, that in the middle or the last one.
struct Made {
  int64_t shift = 0;
  std::string nan_in = "";
  bool last = false;
};

// dx, y, dw, db
std::vector<Values> run(Stream& stream, const ThinCase& c, DType storage, Numbers numbers,
                        GradMode mode = GradMode::Overwrite, const Made& made = {}) {
  const DType master = storage == DType::f64 ? DType::f64 : DType::f32;
  const auto tensor = [&](const std::string& name, const Shape& shape, DType dtype) {
    Values values = draw(numbers, name, 0, shape);
    if (name == made.nan_in) {
      const int64_t pixels = shape.numel() / shape[3],
                    middle = shape[1] / 2 * shape[2] + shape[2] / 2;
      values.data[size_t((made.last ? pixels - 1 : middle) * shape[3])] = std::nan("");
    }
    return tensor_of(stream, values, dtype, made.shift);
  };
  const Shape to = ConvProblem::of(c.spec, c.x, c.w).y();
  const Tensor x = tensor("x", c.x, storage), w = tensor("w", c.w, storage),
               dy = tensor("dy", to, storage), b = tensor("b", {c.w[0]}, master);
  Tensor y = tensor("y", to, storage), dx = tensor("dx", c.x, storage),
         dw = tensor("dw", c.w, master), db = tensor("db", {c.w[0]}, master);
  conv2d_fwd(stream, c.spec, x, w, b, y);
  conv2d_bwd_data(stream, c.spec, dy, w, {dx, mode});
  conv2d_bwd_weight(stream, c.spec, x, dy, {dw, mode}, {db, mode});
  return {values_of(stream, dx), values_of(stream, y), values_of(stream, dw),
          values_of(stream, db)};
}

void check_exact(const ThinCase& c, GradMode mode = GradMode::Overwrite, const Made& made = {}) {
  const auto numbers_only = [](Values values) {
    for (double& x : values.data)
      if (std::isnan(x)) x = 12345;
    return values;
  };
  Stream oracle(poisoned_cpu());
  const auto right = run(oracle, c, DType::f64, Numbers::Integers, mode, made);
  for (DType storage : {DType::f32, DType::bf16})
    for (int capability : {75, 80, 90}) {
      INFO(name_of(storage) << " on " << capability << ": x " << c.x << ", w " << c.w << ", shift "
                            << made.shift << ", NaN in " << made.nan_in);
      simt::Options options;
      options.profile = simt::profile_of(capability);
      options.order = simt::Order::Random;
      options.trap_uninitialised = made.nan_in.empty();
      const simt::ScopedOptions scope(options);
      Stream stream(poisoned(DeviceType::simt));
      const auto got = run(stream, c, storage, Numbers::Integers, mode, made);
      for (size_t i = 0; i < got.size(); ++i) {
        INFO("result " << i);
        const bool rounded = storage == DType::bf16 && i < 2;
        CHECK(difference(numbers_only(got[i]), numbers_only(rounded ? as_bf16(right[i]) : right[i]),
                         0) == "");
      }
    }
}

const ThinCase kCases[] = {{{1, 1, 1}, {2, 9, 35, 1}, {72, 3, 3, 1}},
                           {{1, 0, 2}, {1, 10, 33, 1}, {8, 3, 3, 1}},
                           {{}, {1, 9, 34, 1}, {16, 1, 1, 1}},
                           {{}, {2, 9, 35, 72}, {1, 1, 1, 72}}};

}  // namespace

TEST_CASE("thin convolutions on every profile, with and without packs", "[cuda]") {
  for (const ThinCase& c : kCases)
    for (GradMode mode : {GradMode::Overwrite, GradMode::Accumulate})
      for (int64_t shift : {0, 1}) check_exact(c, mode, {shift});
}

TEST_CASE("thin convolutions of so many images that a part has several tiles", "[cuda]") {
  check_exact({{1, 1, 1}, {300, 1, 2, 1}, {8, 3, 3, 1}}, GradMode::Accumulate);
  check_exact({{}, {300, 2, 1, 8}, {1, 1, 1, 8}}, GradMode::Accumulate);
}

TEST_CASE("a thin convolution's NaN stays in its windows", "[cuda]") {
  for (const ThinCase& c : kCases) {
    check_exact(c, GradMode::Overwrite, {0, "x", false});
    check_exact(c, GradMode::Overwrite, {0, "x", true});
    check_exact(c, GradMode::Overwrite, {0, "dy", false});
  }
}

TEST_CASE("thin convolutions have the same bits in any order", "[cuda]") {
  for (const ThinCase& c : kCases)
    for (DType storage : {DType::f32, DType::bf16}) {
      INFO(name_of(storage) << ": x " << c.x);
      const auto results = [&](uint64_t seed) {
        simt::Options options;
        options.order = simt::Order::Random;
        options.seed = seed;
        const simt::ScopedOptions scope(options);
        Stream stream(poisoned(DeviceType::simt));
        return run(stream, c, storage, Numbers::Normal);
      };
      const auto one = results(1), two = results(2);
      for (size_t i = 0; i < one.size(); ++i) CHECK(one[i].data == two[i].data);
    }
}
