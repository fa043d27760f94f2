// Cases of space_to_channel, channel_to_space and upsample_nearest: copies, and sums of four.
#include "autograd/ops.h"
#include "tests/op_cases.h"

namespace tessera {
namespace {

using Op = Var (*)(Tape&, const Var&);

// An op of one input whose output has `growth` times as many elements.
OpCase layout_case(const std::string& op, Op apply, const std::string& name, const Shape& x,
                   double growth) {
  OpCase c;
  c.op = op;
  c.name = concat(name, x);
  c.inputs = {x};
  c.apply = [apply](Tape& tape, const std::vector<Var>& in) { return apply(tape, in[0]); };
  c.exact = true;
  c.forward = c.backward = {0, f32_bytes({x}) * (1 + growth)};
  return c;
}

OpCase pool(const std::string& name, const Shape& x) {
  return layout_case("space_to_channel", ops::space_to_channel, name, x, 1);
}
OpCase unpool(const std::string& name, const Shape& x) {
  return layout_case("channel_to_space", ops::channel_to_space, name, x, 1);
}
OpCase upsample(const std::string& name, const Shape& x) {
  return layout_case("upsample_nearest", ops::upsample_nearest, name, x, 4);
}

}  // namespace

void add_layout_cases(CaseTable& table) {
  for (const Shape& x : {Shape{2, 4, 4, 1},
                         {1, 6, 10, 3},
                         {2, 2, 2, 7},
                         {1, 32, 34, 20},
                         {1, 62, 2, 65},
                         {0, 4, 4, 3}})
    table.tests.push_back(pool("", x));
  for (const Shape& x : {Shape{2, 3, 5, 12},
                         {1, 1, 1, 4},
                         {1, 16, 17, 80},
                         {3, 31, 1, 28},
                         {1, 2, 2, 260},
                         {0, 4, 4, 8}})
    table.tests.push_back(unpool("", x));
  for (const Shape& x : {Shape{2, 4, 6, 8},
                         {1, 3, 5, 7},
                         {1, 1, 1, 1},
                         {2, 17, 16, 20},
                         {1, 31, 1, 65},
                         {0, 4, 4, 3}})
    table.tests.push_back(upsample("", x));
  for (int64_t n : edge_sizes()) {
    for (const Shape& x : {Shape{1, 2 * n, 2, 3}, {1, 2, 2 * n, 1}, {2, 2, 2, n}})
      table.tests.push_back(pool("", x));
    for (const Shape& x : {Shape{1, n, 2, 4}, {1, 1, n, 12}, {2, 1, 2, 4 * n}})
      table.tests.push_back(unpool("", x));
  }
  table.tests.push_back(pool("", {1, 128, 2, 3}));
  table.tests.push_back(pool("", {1, 2, 128, 1}));
  for (const Shape& x : edge_shapes()) table.tests.push_back(upsample("", x));

  for (const Stage& s : stages()) {
    if (s.bottleneck) continue;
    const int64_t half = s.side / 2;
    table.benchmarks.push_back(pool(s.model + " ", {s.N, s.side, s.side, s.width}));
    table.benchmarks.push_back(unpool(s.model + " ", {s.N, half, half, 4 * s.width}));
    table.benchmarks.push_back(upsample(s.model + " ", {s.N, half, half, 2 * s.width}));
  }
}

}  // namespace tessera
