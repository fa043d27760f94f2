// Cases of pool.
#include "autograd/ops.h"
#include "tests/op_cases.h"

namespace tessera {
namespace {

OpCase pool_case(const std::string& name, Pooling pooling, const Shape& x) {
  OpCase c;
  c.op = "pool";
  c.name = concat(name_of(pooling), ' ', name, x);
  c.inputs = {x};
  c.apply = [pooling](Tape& tape, const std::vector<Var>& in) {
    return ops::pool(tape, pooling, in[0]);
  };
  c.exact = true;  // quarters of sums of small integers, too
  const double large = f32_bytes({x}), small = large / 4;
  c.forward = {double(x.numel()), large + small};
  // A maximum is looked for once more.
  c.backward = {double(x.numel()), large + small + (pooling == Pooling::Max ? large : 0)};
  return c;
}

}  // namespace

void add_pooling_cases(CaseTable& table) {
  for (Pooling pooling : {Pooling::Max, Pooling::Average}) {
    for (const Shape& x : {Shape{2, 4, 4, 1},
                           {1, 2, 2, 1},
                           {1, 6, 10, 3},
                           {2, 2, 2, 7},
                           {3, 10, 6, 8},
                           {1, 32, 34, 20},
                           {1, 62, 2, 65},
                           {0, 4, 4, 3}})
      table.tests.push_back(pool_case("", pooling, x));
    for (int64_t n : edge_sizes())
      for (const Shape& x : {Shape{1, 2 * n, 2, 3}, {1, 2, 2 * n, 1}, {2, 2, 2, n}})
        table.tests.push_back(pool_case("", pooling, x));
    for (const Stage& s : stages())
      if (!s.bottleneck)
        table.benchmarks.push_back(
            pool_case(s.model + " ", pooling, {s.N, s.side, s.side, s.width}));
  }
}

}  // namespace tessera
