// Cases of gelu.
#include "autograd/ops.h"
#include "tests/op_cases.h"

namespace tessera {
namespace {

OpCase gelu_case(const std::string& name, GeluForm form, const Shape& x) {
  OpCase c;
  c.op = "gelu";
  c.name = concat(form == GeluForm::Exact ? "exact " : "tanh ", name, x);
  c.inputs = {x};
  c.apply = [form](Tape& tape, const std::vector<Var>& in) { return ops::gelu(tape, form, in[0]); };
  c.scale = 3;  // into both tails
  c.forward = {20.0 * double(x.numel()), f32_bytes({x, x})};
  c.backward = {30.0 * double(x.numel()), f32_bytes({x, x, x})};
  return c;
}

}  // namespace

void add_gelu_cases(CaseTable& table) {
  for (GeluForm form : {GeluForm::Exact, GeluForm::Tanh}) {
    for (const Shape& x :
         {Shape{2, 5, 7, 3}, {1}, {17}, {31, 33}, {3, 7, 1}, {0, 4}, {1, 64, 65, 3}})
      table.tests.push_back(gelu_case("", form, x));
    for (int64_t n : edge_sizes()) table.tests.push_back(gelu_case("", form, {n}));
    for (const Shape& x : edge_shapes()) table.tests.push_back(gelu_case("", form, x));
    for (const Stage& s : stages())
      if (!s.bottleneck)
        table.benchmarks.push_back(gelu_case(s.model + " ", form, {s.N, s.side, s.side, s.width}));
  }
}

}  // namespace tessera
