// Cases of activation.
#include "autograd/ops.h"
#include "tests/op_cases.h"

namespace tessera {
namespace {

OpCase activation_case(const std::string& name, Activation act, const Shape& x) {
  OpCase c;
  c.op = "activation";
  c.name = concat(name_of(act), ' ', name, x);
  c.inputs = {x};
  c.apply = [act](Tape& tape, const std::vector<Var>& in) {
    return ops::activation(tape, act, in[0]);
  };
  c.scale = 3;  // into both tails
  c.forward = {20.0 * double(x.numel()), f32_bytes({x, x})};
  c.backward = {30.0 * double(x.numel()), f32_bytes({x, x, x})};
  return c;
}

}  // namespace

void add_activation_cases(CaseTable& table) {
  for (Activation act : {Activation::Gelu, Activation::GeluTanh, Activation::Relu}) {
    for (const Shape& x :
         {Shape{2, 5, 7, 3}, {1}, {17}, {31, 33}, {3, 7, 1}, {0, 4}, {1, 64, 65, 3}})
      table.tests.push_back(activation_case("", act, x));
    for (int64_t n : edge_sizes()) table.tests.push_back(activation_case("", act, {n}));
    for (const Shape& x : edge_shapes()) table.tests.push_back(activation_case("", act, x));
    for (const Stage& s : stages())
      if (!s.bottleneck)
        table.benchmarks.push_back(
            activation_case(s.model + " ", act, {s.N, s.side, s.side, s.width}));
  }
}

}  // namespace tessera
