// Cases of linear.
#include "autograd/ops.h"
#include "tests/op_cases.h"

namespace tessera {
namespace {

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
      return linear_in_steps(tape, in[0], in[1], in[2]);
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
    for (int64_t level = 0; level <= 3; ++level)
      table.benchmarks.push_back(linear_case(m.name + " block ", m.N, 512, m.base << level));
  }
  for (int64_t C : {32, 128, 320, 640, 1280, 4096})
    table.benchmarks.push_back(linear_case("sweep ", 4096, C, C));
}

}  // namespace tessera
