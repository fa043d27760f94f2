// Cases of split_columns: one of the parts at a time, the others without a gradient; and the sum of
// two.
#include <numeric>

#include "autograd/ops.h"
#include "tests/op_cases.h"

namespace tessera {
namespace {

using Widths = std::vector<int64_t>;

OpCase split_case(const std::string& name, int64_t N, const Widths& widths, size_t part) {
  const int64_t C = std::accumulate(widths.begin(), widths.end(), int64_t{0});
  OpCase c;
  c.op = "split_columns";
  c.name = concat(name, Shape{N, C}, " in ", widths.size(), ", ", part);
  c.inputs = {{N, C}};
  c.apply = [=](Tape& tape, const std::vector<Var>& in) {
    return ops::split_columns(tape, in[0], widths).at(part);
  };
  c.exact = true;
  c.forward = {0, f32_bytes({{N, C}, {N, C}})};
  c.backward = {0, f32_bytes({{N, C}, {N, widths[part]}})};
  return c;
}

// Of the first two parts, which are as wide.
OpCase sum_case(int64_t N, const Widths& widths) {
  OpCase c = split_case("", N, widths, 0);
  c.name += " + 1";
  c.apply = [=](Tape& tape, const std::vector<Var>& in) {
    const std::vector<Var> parts = ops::split_columns(tape, in[0], widths);
    return ops::add(tape, parts.at(0), parts.at(1));
  };
  return c;
}

}  // namespace

void add_split_cases(CaseTable& table) {
  for (const Widths& widths : {Widths{8, 16, 24}, {3, 5, 1}, {16}, {7, 0, 9}, {8, 4}})
    for (size_t part = 0; part < widths.size(); ++part)
      if (widths[part] > 0) table.tests.push_back(split_case("", 3, widths, part));
  for (const int64_t width : {2, 8}) {  // more parts than a launch takes
    const Widths many(37, width);
    for (const size_t part : {0, 15, 16, 36}) table.tests.push_back(split_case("", 2, many, part));
    table.tests.push_back(sum_case(5, many));
  }
  table.tests.push_back(split_case("", 0, {4, 4}, 1));
  for (const int64_t n : edge_sizes()) {
    table.tests.push_back(split_case("", n, {5, 3}, 1));
    table.tests.push_back(split_case("", 2, {n, 8}, 1));
    table.tests.push_back(sum_case(2, {n, n, 1}));
  }

  for (const Model& m : models()) {  // the projections of the timestep
    Widths widths;
    for (const int level : {0, 1, 2, 3, 2, 1, 0}) widths.push_back(m.base << level);
    table.benchmarks.push_back(split_case(m.name + " ", m.N, widths, 3));
  }
  for (const int64_t width : {32, 320, 1280})
    table.benchmarks.push_back(split_case("sweep ", 4096, Widths(4, width), 0));
}

}  // namespace tessera
