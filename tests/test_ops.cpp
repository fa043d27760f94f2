// Every case of the op table: the fast f32 path against the f64 oracle, the oracle against central
// differences, fused against composed, and the same bits twice.
#include <catch2/catch.hpp>
#include <cmath>
#include <numeric>
#include <set>

#include "core/rng.h"
#include "tests/op_runner.h"

using namespace tessera;

namespace {

constexpr GradMode kModes[] = {GradMode::Overwrite, GradMode::Accumulate};

// Calls check(stream, case) for every case that `applies` to, on poisoned memory.
template <class Applies, class Check>
void for_each_case(Applies applies, Check check) {
  Stream stream(poisoned_cpu());
  int count = 0;
  for (const OpCase& c : all_cases().tests) {
    if (!applies(c)) continue;
    INFO(c.op << ' ' << c.name);
    check(stream, c);
    ++count;
  }
  REQUIRE(count > 0);
}

bool always(const OpCase&) { return true; }

}  // namespace

TEST_CASE("fast path equals the f64 oracle, output and every gradient", "[ops]") {
  for_each_case(always, [](Stream& stream, const OpCase& c) {
    for (GradMode mode : kModes) {
      INFO((mode == GradMode::Overwrite ? "overwriting" : "accumulating"));
      const Result fast = run(stream, c, c.apply, DType::f32, Numbers::Normal, mode);
      const Result oracle = run(stream, c, c.apply, DType::f64, Numbers::Normal, mode);
      CHECK(difference(fast, oracle, c.tolerance) == "");
    }
  });
}

TEST_CASE("accumulating adds to what was there, in the oracle too", "[ops]") {
  for_each_case(always, [](Stream& stream, const OpCase& c) {
    const auto oracle = [&](GradMode mode) {
      return run(stream, c, c.apply, DType::f64, Numbers::Normal, mode);
    };
    Result sum = oracle(GradMode::Overwrite);
    for (size_t i = 0; i < sum.gradients.size(); ++i) {
      const Values prior = prior_gradient(c, Numbers::Normal, i);
      for (size_t j = 0; j < prior.data.size(); ++j) sum.gradients[i].data[j] += prior.data[j];
    }
    CHECK(difference(oracle(GradMode::Accumulate), sum, 1e-12) == "");
  });
}

TEST_CASE("sums of products are exact on small integers", "[ops]") {
  for_each_case([](const OpCase& c) { return c.exact; },
                [](Stream& stream, const OpCase& c) {
                  for (GradMode mode : kModes) {
                    const auto in = [&](DType dtype) {
                      return run(stream, c, c.apply, dtype, Numbers::Integers, mode);
                    };
                    CHECK(difference(in(DType::f32), in(DType::f64),
                                     integer_tolerance(stream, c, DType::f32)) == "");
                  }
                });
}

TEST_CASE("fused ops equal their composition", "[ops][fused]") {
  std::set<std::string> ops;
  for_each_case([](const OpCase& c) { return c.composition != nullptr; },
                [&](Stream& stream, const OpCase& c) {
                  ops.insert(c.op);
                  for (GradMode mode : kModes) {
                    const auto with = [&](const Apply& apply, DType dtype) {
                      return run(stream, c, apply, dtype, Numbers::Normal, mode);
                    };
                    const Result oracle = with(c.apply, DType::f64);
                    CHECK(difference(with(c.composition, DType::f64), oracle, 1e-11) == "");
                    CHECK(difference(with(c.composition, DType::f32), with(c.apply, DType::f32),
                                     2 * c.tolerance) == "");
                  }
                });
  CHECK(ops == std::set<std::string>{"conv2d", "concat_upsample", "group_norm_act",
                                     "residual_block", "upcat_conv2d"});
}

TEST_CASE("two runs give the same bits", "[ops]") {
  for_each_case(always, [](Stream& stream, const OpCase& c) {
    Stream fresh(poisoned_cpu());  // makes its primitives anew
    const auto on = [&](Stream& s) {
      return run(s, c, c.apply, DType::f32, Numbers::Normal, GradMode::Overwrite);
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

namespace {

constexpr double kEps = 1e-6, kAbsolute = 1e-5, kRelative = 1e-3;
constexpr size_t kElements = 200;     // of an input that are checked, all if it has fewer
constexpr double kMaxCost = 200'000;  // flops and bytes of a case; larger ones run the same loops

// The sum of a case's output weighted with fixed numbers: a scalar function of its inputs.
double projection(Stream& stream, const OpCase& c, const std::vector<Var>& inputs,
                  const std::vector<double>& weights) {
  Tape tape(stream, Tape::Mode::Inference);
  const Var y = c.apply(tape, inputs);
  const double* values = y.value.data<double>();
  return std::inner_product(weights.begin(), weights.end(), values, 0.0);
}

// Elements 0 .. size-1, or kElements of them at random.
std::vector<size_t> chosen(size_t size, const std::string& name) {
  std::vector<size_t> result;
  const RngKey key{1, 0, uint32_t(name.size()), Purpose::shuffle};
  for (size_t i = 0; i < std::min(size, kElements); ++i)
    result.push_back(
        size <= kElements ? i : uniform_below(random4(key, uint32_t(i))[0], uint32_t(size)));
  return result;
}

// The first element of input `index` whose gradient differs from the central difference, or "".
std::string check_gradient(Stream& stream, const OpCase& c, size_t index, const Result& result) {
  std::vector<Var> inputs;
  for (const Values& values : draw_inputs(c, Numbers::Normal))
    inputs.push_back(Var::leaf(tensor_of(stream, values, DType::f64)));
  const std::vector<double> weights = upstream(c, Numbers::Normal, result.y.shape).data;
  const std::vector<double>& gradient = result.gradients[index].data;
  for (size_t i : chosen(gradient.size(), c.name)) {
    double& x = inputs[index].value.data<double>()[i];
    const double value = x;
    x = value + kEps;
    const double above = projection(stream, c, inputs, weights);
    x = value - kEps;
    const double below = projection(stream, c, inputs, weights);
    x = value;
    const double numeric = (above - below) / (2 * kEps);
    if (!(std::abs(gradient[i] - numeric) <= kAbsolute + kRelative * std::abs(numeric)))
      return concat("input ", index, " element ", i, ": gradient ", gradient[i],
                    ", central difference ", numeric);
  }
  return "";
}

}  // namespace

TEST_CASE("gradients of the oracle are those of central differences", "[ops][gradient][slow]") {
  std::set<std::string> all, checked;
  for_each_case(
      [&](const OpCase& c) {
        all.insert(c.op);
        return c.forward.flops + c.forward.bytes <= kMaxCost;
      },
      [&](Stream& stream, const OpCase& c) {
        checked.insert(c.op);
        const Result result =
            run(stream, c, c.apply, DType::f64, Numbers::Normal, GradMode::Overwrite);
        for (size_t i = 0; i < result.gradients.size(); ++i)
          CHECK(check_gradient(stream, c, i, result) == "");
      });
  CHECK(checked == all);
}

TEST_CASE("a gradient that is not wanted changes no other", "[ops]") {
  for_each_case([](const OpCase& c) { return c.inputs.size() > size_t(c.constants) + 1; },
                [](Stream& stream, const OpCase& c) {
                  const Result all =
                      run(stream, c, c.apply, DType::f32, Numbers::Normal, GradMode::Overwrite);
                  for (size_t only = 0; only < all.gradients.size(); ++only) {
                    INFO("only input " << only);
                    CHECK(difference(only_gradient(stream, c, DType::f32, only),
                                     all.gradients[only], c.tolerance) == "");
                  }
                });
}
