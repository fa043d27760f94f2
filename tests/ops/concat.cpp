// Cases of concat_channels, and of concat_upsample, which must equal its composition.
#include "autograd/ops.h"
#include "tests/op_cases.h"

namespace tessera {
namespace {

OpCase concat_case(const std::string& name, const Shape& a, const Shape& b) {
  OpCase c;
  c.op = "concat_channels";
  c.name = tessera::concat(name, a, " ", b);
  c.inputs = {a, b};
  c.apply = [](Tape& tape, const std::vector<Var>& in) {
    return ops::concat_channels(tape, in[0], in[1]);
  };
  c.exact = true;
  c.forward = c.backward = {0, 2 * f32_bytes({a, b})};
  return c;
}

// Both halves are one value, whose gradient is the sum of theirs.
OpCase twice_case(const Shape& x) {
  OpCase c = concat_case("", x, x);
  c.name = tessera::concat(x, " twice");
  c.inputs = {x};
  c.apply = [](Tape& tape, const std::vector<Var>& in) {
    return ops::concat_channels(tape, in[0], in[0]);
  };
  return c;
}

OpCase fused_case(const std::string& name, const Shape& low, const Shape& skip) {
  OpCase c;
  c.op = "concat_upsample";
  c.name = tessera::concat(name, low, " ", skip);
  c.inputs = {low, skip};
  c.apply = [](Tape& tape, const std::vector<Var>& in) {
    return ops::concat_upsample(tape, in[0], in[1]);
  };
  c.composition = [](Tape& tape, const std::vector<Var>& in) {
    return ops::concat_channels(tape, ops::upsample_nearest(tape, in[0]), in[1]);
  };
  c.exact = true;
  c.forward = c.backward = {0, 5 * f32_bytes({low}) + 2 * f32_bytes({skip})};
  return c;
}

}  // namespace

void add_concat_cases(CaseTable& table) {
  struct Pair {
    Shape a, b;
  };
  for (const Pair& p : {Pair{{2, 4, 4, 8}, {2, 4, 4, 16}},
                        {{2, 5, 3, 3}, {2, 5, 3, 7}},
                        {{1, 1, 1, 1}, {1, 1, 1, 1}},
                        {{1, 31, 33, 20}, {1, 31, 33, 65}},
                        {{0, 4, 4, 3}, {0, 4, 4, 5}}})
    table.tests.push_back(concat_case("", p.a, p.b));
  for (const Shape& x : {Shape{2, 4, 4, 8}, {1, 5, 3, 7}, {1, 16, 16, 16}})
    table.tests.push_back(twice_case(x));
  for (const Pair& p : {Pair{{2, 4, 3, 8}, {2, 8, 6, 16}},
                        {{1, 1, 1, 1}, {1, 2, 2, 1}},
                        {{2, 5, 3, 3}, {2, 10, 6, 7}},
                        {{1, 16, 17, 65}, {1, 32, 34, 20}},
                        {{0, 4, 4, 3}, {0, 8, 8, 5}}})
    table.tests.push_back(fused_case("", p.a, p.b));

  for (int64_t n : edge_sizes()) {
    for (const Pair& p : {Pair{{1, n, 2, 3}, {1, n, 2, 5}},
                          {{1, 2, n, 1}, {1, 2, n, 2}},
                          {{2, 1, 2, n}, {2, 1, 2, 3}},
                          {{2, 1, 2, 5}, {2, 1, 2, n}}})
      table.tests.push_back(concat_case("", p.a, p.b));
    for (const Pair& p : {Pair{{1, n, 1, 3}, {1, 2 * n, 2, 5}},
                          {{1, 1, n, 1}, {1, 2, 2 * n, 2}},
                          {{1, 1, 2, n}, {1, 2, 4, 3}},
                          {{1, 2, 1, 5}, {1, 4, 2, n}}})
      table.tests.push_back(fused_case("", p.a, p.b));
  }

  for (const Stage& s : stages()) {
    if (s.bottleneck) continue;
    const Shape low{s.N, s.side / 2, s.side / 2, 2 * s.width};
    const Shape up{s.N, s.side, s.side, 2 * s.width}, skip{s.N, s.side, s.side, s.width};
    table.benchmarks.push_back(concat_case(s.model + " ", up, skip));
    table.benchmarks.push_back(fused_case(s.model + " ", low, skip));
  }
}

}  // namespace tessera
