// Cases of batch_norm in training; test_batch_norm.cpp has its statistics and evaluation.
#include "autograd/ops.h"
#include "tests/op_cases.h"

namespace tessera {
namespace {

OpCase batch_norm_case(const std::string& name, const Shape& x) {
  OpCase c;
  c.op = "batch_norm";
  c.name = concat(name, x);
  c.inputs = {x, {x[3]}, {x[3]}};
  c.roles = {Role::Activation, Role::Vector, Role::Vector};
  c.apply = [](Tape& tape, const std::vector<Var>& in) {
    const DType master = master_of(in[0].value.dtype());
    const auto zeros = [&] { return Tensor::zeros(tape.stream(), in[1].shape(), master); };
    return ops::batch_norm(tape, in[0], in[1], in[2], {zeros(), zeros()}, true);
  };
  c.forward = {8.0 * double(x.numel()), f32_bytes({x, x})};
  c.backward = {14.0 * double(x.numel()), f32_bytes({x, x, x})};
  return c;
}

}  // namespace

void add_batch_norm_cases(CaseTable& table) {
  // At least three values a channel: with two, the true gradient of x nearly vanishes.
  for (const Shape& x : {Shape{2, 4, 6, 16},
                         {3, 1, 1, 64},
                         {2, 1, 2, 24},
                         {3, 5, 3, 21},
                         {2, 31, 33, 3},
                         {5, 33, 31, 7},
                         {3, 16, 16, 8},
                         {1, 13, 1, 65},
                         {4, 5, 5, 1},
                         {0, 4, 4, 16}})
    table.tests.push_back(batch_norm_case("", x));
  for (const Shape& x : edge_shapes()) table.tests.push_back(batch_norm_case("", x));
  for (const Stage& s : stages())
    table.benchmarks.push_back(batch_norm_case(s.model + " ", {s.N, s.side, s.side, s.width}));
}

}  // namespace tessera
