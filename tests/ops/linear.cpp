// Cases of linear.
#include "autograd/ops.h"
#include "tests/op_cases.h"
#include "tests/op_runner.h"

namespace tessera {
namespace {

// linear, whose product is stored before the bias is added to it.
Var in_steps(Tape& tape, const Var& x, const Var& w, const Var& b) {
  const int64_t K = w.shape()[0];
  Values unit{{K, K}, std::vector<double>(size_t(K * K))};  // a product with it adds the bias alone
  for (int64_t k = 0; k < K; ++k) unit.data[size_t(k * K + k)] = 1;
  const Var product = rounded_to_bf16(tape, ops::linear(tape, x, w, {}));
  return ops::linear(tape, product, Var::leaf(tensor_of(tape.stream(), unit, DType::f64)), b);
}

OpCase linear_case(const std::string& name, int64_t N, int64_t C, int64_t K, bool bias = true) {
  const Shape x{N, C}, w{K, C}, y{N, K};
  OpCase c;
  c.op = "linear";
  c.name = concat(name, x, " -> ", K, bias ? "" : " without bias");
  c.inputs = {x, w};
  c.roles = {Role::Activation, Role::Weight, Role::Vector};
  if (bias) c.inputs.push_back({K});
  c.apply = [](Tape& tape, const std::vector<Var>& in) {
    return ops::linear(tape, in[0], in[1], in.size() > 2 ? in[2] : Var{});
  };
  c.exact = true;
  if (bias)
    c.bf16_steps = [](Tape& tape, const std::vector<Var>& in) {
      return in_steps(tape, in[0], in[1], in[2]);
    };
  c.forward = {2.0 * double(N * C * K), f32_bytes({x, w, y})};
  c.backward = {4.0 * double(N * C * K), f32_bytes({y, w, x, x, y, w})};
  return c;
}

}  // namespace

void add_linear_cases(CaseTable& table) {
  struct Sizes {
    int64_t N, C, K;
  };
  for (const Sizes& s : {Sizes{1, 1, 1},
                         {3, 7, 5},
                         {1, 20, 1},
                         {33, 65, 31},
                         {2, 1, 7},
                         {0, 20, 7},
                         {5, 3, 24},
                         {31, 40, 20},
                         {32, 128, 64}})
    table.tests.push_back(linear_case("", s.N, s.C, s.K));
  for (int64_t n : edge_sizes())
    for (const Sizes& s : {Sizes{n, 3, 5}, {2, n, 3}, {3, 2, n}})
      table.tests.push_back(linear_case("", s.N, s.C, s.K));
  table.tests.push_back(linear_case("", 4, 7, 3, false));
  table.tests.push_back(linear_case("", 8, 128, 65, false));

  for (const Model& m : models()) {
    for (int64_t C : {128, 512})
      table.benchmarks.push_back(linear_case(m.name + " embedding ", m.N, C, 512));
    table.benchmarks.push_back(linear_case(m.name + " blocks ", m.N, 512, 22 * m.base));
  }
  for (int64_t C : {32, 128, 320, 640, 1280, 4096})
    table.benchmarks.push_back(linear_case("sweep ", 4096, C, C));
}

}  // namespace tessera
