// The CPU's loops in bf16 against the f64 oracle, for every case of the table: by oneDNN's products
// of bf16 where the CPU has them, and by those in f32 that stand for them elsewhere.
#include <catch2/catch.hpp>
#include <cmath>

#include "kernels/cpu/onednn.h"
#include "tests/op_runner.h"

using namespace tessera;

namespace {

constexpr GradMode kModes[] = {GradMode::Overwrite, GradMode::Accumulate};
constexpr double kTolerance = 1e-2;  // as on CUDA

// Calls check(stream, case) for every case that `applies` to and all kinds of products: widened,
// and, where the CPU multiplies bf16, as AVX512_BF16 and as AMX have operations choose.
template <class Applies, class Check>
void for_each_case(Applies applies, Check check) {
  using enum cpu::Bf16Products;
  for (const auto products : {Widened, Vectors, Tiles}) {
    if (products != Widened && cpu::bf16_products() == Widened) continue;
    Stream stream(poisoned_cpu());
    stream.state<cpu::OneDnn>().products = products;
    int count = 0;
    for (const OpCase& c : all_cases().tests) {
      if (!applies(c)) continue;
      INFO(c.op << ' ' << c.name << " by "
                << (products == Widened   ? "products of f32"
                    : products == Vectors ? "products of bf16 or f32"
                                          : "products of bf16"));
      check(stream, c);
      ++count;
    }
    REQUIRE(count > 3);
  }
}

Result in_bf16(Stream& stream, const OpCase& c, const Apply& apply, Numbers numbers,
               GradMode mode) {
  return run(stream, c, apply, DType::bf16, numbers, mode);
}

// In double, of numbers that bf16 holds.
Result exactly(Stream& stream, const OpCase& c, Numbers numbers, GradMode mode) {
  return run(stream, c, c.cpu_bf16_steps ? c.cpu_bf16_steps : c.apply, DType::f64, numbers, mode,
             DType::bf16);
}

// Rounds sums of taps, where no step of an oracle can.
bool is_up_block(const OpCase& c) {
  return c.op == "residual_block" && c.name.find("skip") != std::string::npos;
}

// Elementwise, but an up block in the norm: three products in a chain, as in test_golden_ops.cpp.
std::string error_of(const Result& got, const Result& expected, const OpCase& c) {
  return is_up_block(c) ? norm_difference(got, expected, std::sqrt(3) * kTolerance)
                        : difference(got, expected, kTolerance);
}

// Every element moved by `share` of it and of the root mean square.
void move_by(double share, Values& values) {
  const double rms = root_mean_square(values);
  for (double& x : values.data) x += share * (std::abs(x) + rms);
}
void move_by(double share, Result& result) {
  move_by(share, result.y);
  for (Values& gradient : result.gradients) move_by(share, gradient);
}

// "" if every element of `got` is between those of low and high, else the first that is not.
std::string outside(const Values& got, const Values& low, const Values& high) {
  if (got.shape != low.shape) return concat("shape ", got.shape, ", expected ", low.shape);
  for (size_t i = 0; i < got.data.size(); ++i)
    if (!(low.data[i] <= got.data[i] && got.data[i] <= high.data[i]))
      return concat("element ", i, " of ", got.shape, " is ", got.data[i], ", expected ",
                    low.data[i], " to ", high.data[i]);
  return "";
}

// Rounded once: each what the exact number, or one that close to it, is stored as.
void check_rounded_once(const OpCase& c, const Result& got, const Result& exact, double tolerance) {
  Result low = exact, high = exact;
  move_by(-tolerance, low), move_by(tolerance, high);
  low = as_stored(low, c, DType::bf16), high = as_stored(high, c, DType::bf16);
  CHECK(outside(got.y, low.y, high.y) == "");
  REQUIRE(got.gradients.size() == exact.gradients.size());
  for (size_t i = 0; i < got.gradients.size(); ++i)
    CHECK(outside(got.gradients[i], low.gradients[i], high.gradients[i]) == "");
}

bool always(const OpCase&) { return true; }

}  // namespace

TEST_CASE("the CPU in bf16 equals the f64 oracle", "[ops][bf16]") {
  // A ReLU makes a jump of a sum that is rounded to the other side of zero.
  const auto comparable = [](const OpCase& c) {
    return !is_up_block(c) || c.name.find("relu") == std::string::npos;
  };
  for_each_case(comparable, [](Stream& stream, const OpCase& c) {
    for (GradMode mode : kModes) {
      INFO((mode == GradMode::Overwrite ? "overwriting" : "accumulating"));
      CHECK(error_of(in_bf16(stream, c, c.apply, Numbers::Normal, mode),
                     exactly(stream, c, Numbers::Normal, mode), c) == "");
    }
  });
}

TEST_CASE("the CPU in bf16 rounds sums of products of integers once", "[ops][bf16]") {
  for_each_case([](const OpCase& c) { return c.exact; },
                [](Stream& stream, const OpCase& c) {
                  for (GradMode mode : kModes)
                    check_rounded_once(c, in_bf16(stream, c, c.apply, Numbers::Integers, mode),
                                       exactly(stream, c, Numbers::Integers, mode),
                                       integer_tolerance(stream, c, DType::bf16));
                });
}

// Only what joins: other compositions store more on the way, of which a norm or a ReLU makes more
// than a bound could allow. Goldens compare those, with fusion and without.
TEST_CASE("what the CPU joins in bf16 equals its composition", "[ops][bf16][fused]") {
  for_each_case([](const OpCase& c) { return c.op == "upcat_conv2d" || c.op == "concat_upsample"; },
                [](Stream& stream, const OpCase& c) {
                  for (GradMode mode : kModes)
                    CHECK(norm_difference(in_bf16(stream, c, c.composition, Numbers::Normal, mode),
                                          in_bf16(stream, c, c.apply, Numbers::Normal, mode),
                                          kTolerance) == "");
                });
}

TEST_CASE("two runs of the CPU in bf16 give the same bits", "[ops][bf16]") {
  for_each_case(always, [](Stream& stream, const OpCase& c) {
    Stream fresh(poisoned_cpu());  // makes its primitives anew
    fresh.state<cpu::OneDnn>().products = stream.state<cpu::OneDnn>().products;
    const auto on = [&](Stream& s) {
      return in_bf16(s, c, c.apply, Numbers::Normal, GradMode::Overwrite);
    };
    const Result first = on(stream), again = on(stream), other = on(fresh);
    CHECK(first.y.data == again.y.data);
    CHECK(first.y.data == other.y.data);
    for (size_t i = 0; i < first.gradients.size(); ++i) {
      CHECK(first.gradients[i].data == again.gradients[i].data);
      CHECK(first.gradients[i].data == other.gradients[i].data);
    }
  });
}

// The cases of the table are smaller than what is widened or gathered at a time.
TEST_CASE("the CPU sums over images that are taken a few at a time", "[ops][bf16]") {
  Stream stream(poisoned_cpu());
  stream.state<cpu::OneDnn>().products = cpu::Bf16Products::Widened;
  const Values x = draw(Numbers::Integers, "x", 0, {5, 64, 64, 72}),
               w = draw(Numbers::Integers, "w", 0, {3, 3, 3, 72}),
               dy = draw(Numbers::Integers, "dy", 0, {5, 64, 64, 3});
  const auto results = [&](DType dtype, GradMode mode) {
    const auto in = [&](const Values& values) { return tensor_of(stream, values, dtype); };
    const DType master = master_of(dtype);
    Tensor y = Tensor::empty(stream, dy.shape, dtype), dx = in(x),
           dw = tensor_of(stream, w, master), db = Tensor::zeros(stream, {3}, master);
    const ConvSpec same{1, 1, 1};
    conv2d_fwd(stream, same, in(x), in(w), {}, y);
    conv2d_bwd_data(stream, same, in(dy), in(w), {dx, mode});
    conv2d_bwd_weight(stream, same, in(x), in(dy), {dw, mode}, {db, mode});
    return std::vector{as_bf16(values_of(stream, y)).data, as_bf16(values_of(stream, dx)).data,
                       values_of(stream, dw).data, values_of(stream, db).data};
  };
  for (GradMode mode : kModes) {
    const auto exact = results(DType::f64, mode);
    CHECK(results(DType::bf16, mode) == exact);
    CHECK(results(DType::f32, mode) == exact);
  }
}
