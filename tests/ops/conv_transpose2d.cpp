// Cases of conv_transpose2d.
#include "autograd/ops.h"
#include "tests/op_cases.h"
#include "tests/op_runner.h"

namespace tessera {
namespace {

Var bias_of(const std::vector<Var>& in) { return in.size() > 2 ? in[2] : Var{}; }

// What kernels store on the way: the product without its bias, and dx before it is added to what
// was there. A 1x1 convolution with the unit filter adds the bias alone.
Var in_steps(Tape& tape, const std::vector<Var>& in) {
  const Var product =
      rounded_to_bf16(tape, ops::conv_transpose2d(tape, rounded_to_bf16(tape, in[0]), in[1], {}));
  if (in.size() == 2) return product;
  const int64_t K = in[1].shape()[3];
  Values unit{{K, 1, 1, K}, std::vector<double>(size_t(K * K))};
  for (int64_t k = 0; k < K; ++k) unit.data[size_t(k * K + k)] = 1;
  // A bias's gradient comes only with a filter's.
  const Var filter = Var::leaf(tensor_of(tape.stream(), unit, DType::f64), true);
  return ops::conv2d(tape, {}, product, filter, in[2]);
}

OpCase transposed_case(const std::string& name, const Shape& x, int64_t K, bool bias = true) {
  const int64_t C = x[3];
  const Shape w{C, 2, 2, K}, y{x[0], 2 * x[1], 2 * x[2], K};
  OpCase c;
  c.op = "conv_transpose2d";
  c.name = concat(name, x, " -> ", K, bias ? "" : " without bias");
  c.inputs = {x, w};
  c.roles = {Role::Activation, Role::Weight, Role::Vector};
  if (bias) c.inputs.push_back({K});
  c.apply = [](Tape& tape, const std::vector<Var>& in) {
    return ops::conv_transpose2d(tape, in[0], in[1], bias_of(in));
  };
  c.bf16_steps = c.cpu_bf16_steps = in_steps;
  c.exact = true;
  const double flops = 2.0 * double(y.numel()) * double(C);
  c.forward = {flops, f32_bytes({x, w, y})};
  c.backward = {2 * flops, f32_bytes({y, w, x, x, y, w})};
  return c;
}

struct Sizes {
  Shape x;
  int64_t K;
};

}  // namespace

void add_conv_transpose2d_cases(CaseTable& table) {
  for (const Sizes& s : {Sizes{{2, 4, 3, 7}, 3},
                         {{1, 1, 1, 1}, 1},
                         {{1, 16, 17, 20}, 7},
                         {{1, 1, 2, 40}, 20},
                         {{1, 17, 15, 3}, 1},
                         {{2, 3, 5, 24}, 65},
                         {{2, 4, 4, 64}, 32},
                         {{1, 5, 4, 16}, 8},
                         {{0, 4, 4, 3}, 7}})
    table.tests.push_back(transposed_case("", s.x, s.K));
  for (int64_t n : edge_sizes())
    for (const Sizes& s :
         {Sizes{{1, n, 2, 3}, 5}, {{1, 2, n, 2}, 3}, {{1, 2, 1, n}, 2}, {{2, 1, 2, 2}, n}})
      table.tests.push_back(transposed_case("", s.x, s.K));
  for (const Shape& x : {Shape{2, 3, 5, 7}, {1, 0, 4, 3}})
    table.tests.push_back(transposed_case("", x, 20, false));
  // From the width of a level below to that of this one.
  for (const Stage& s : stages())
    if (!s.bottleneck)
      table.benchmarks.push_back(
          transposed_case(s.model + " ", {s.N, s.side / 2, s.side / 2, 2 * s.width}, s.width));
}

}  // namespace tessera
