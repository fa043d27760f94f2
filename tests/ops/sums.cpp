// Cases of add, add_broadcast and mse.
#include "autograd/ops.h"
#include "tests/op_cases.h"

namespace tessera {
namespace {

OpCase add_case(const std::string& name, const Shape& x) {
  OpCase c;
  c.op = "add";
  c.name = concat(name, x);
  c.inputs = {x, x};
  c.apply = [](Tape& tape, const std::vector<Var>& in) { return ops::add(tape, in[0], in[1]); };
  c.exact = true;
  c.forward = {double(x.numel()), f32_bytes({x, x, x})};
  c.backward = {0, f32_bytes({x, x, x})};
  return c;
}

OpCase broadcast_case(const std::string& name, const Shape& x) {
  OpCase c;
  c.op = "add_broadcast";
  c.name = concat(name, x);
  c.inputs = {x, {x[0], x[3]}};
  c.apply = [](Tape& tape, const std::vector<Var>& in) {
    return ops::add_broadcast(tape, in[0], in[1]);
  };
  c.exact = true;
  c.forward = {double(x.numel()), f32_bytes({x, x})};
  c.backward = {double(x.numel()), f32_bytes({x, x, x})};
  return c;
}

// A t of the master's type: in bf16 a bias of f32.
OpCase bias_case(const std::string& name, const Shape& x) {
  OpCase c = broadcast_case(name + "bias ", x);
  c.roles = {Role::Activation, Role::Vector};
  return c;
}

OpCase mse_case(const std::string& name, const Shape& x) {
  OpCase c;
  c.op = "mse";
  c.name = concat(name, x);
  c.inputs = {x, x};
  c.roles = {Role::Activation, Role::Vector};
  c.constants = 1;
  c.apply = [](Tape& tape, const std::vector<Var>& in) {
    return ops::mse(tape, in[0], in[1].value);
  };
  c.forward = {3.0 * double(x.numel()), f32_bytes({x, x})};
  c.backward = {2.0 * double(x.numel()), f32_bytes({x, x, x})};
  return c;
}

}  // namespace

void add_sum_cases(CaseTable& table) {
  for (const Shape& x : {Shape{1}, {2, 5, 7, 3}, {31, 33}, {3, 64, 65, 2}, {0, 4}})
    table.tests.push_back(add_case("", x));
  for (const Shape& x : {Shape{2, 6, 4, 8},
                         {3, 5, 1, 7},
                         {1, 1, 1, 1},
                         {1, 31, 33, 65},
                         {2, 2, 3, 130},
                         {0, 4, 4, 8}})
    for (auto* make : {broadcast_case, bias_case}) table.tests.push_back(make("", x));
  for (const Shape& x : {Shape{1}, {3, 6, 6, 1}, {2, 5, 7, 3}, {33, 31, 17, 1}})
    table.tests.push_back(mse_case("", x));
  // No empty mse: the mean of no elements is refused (test_op_errors.cpp).
  for (int64_t n : edge_sizes()) {
    table.tests.push_back(add_case("", {n}));
    table.tests.push_back(mse_case("", {n}));
  }
  for (const Shape& x : edge_shapes()) {
    table.tests.push_back(add_case("", x));
    table.tests.push_back(broadcast_case("", x));
    table.tests.push_back(mse_case("", x));
  }

  for (const Stage& s : stages()) {
    const Shape x{s.N, s.side, s.side, s.width};
    table.benchmarks.push_back(add_case(s.model + " ", x));
    table.benchmarks.push_back(broadcast_case(s.model + " ", x));
  }
  for (const Model& m : models())
    table.benchmarks.push_back(mse_case(m.name + " ", {m.N, m.side, m.side, 1}));
  for (const Stage& s : sweep())
    table.benchmarks.push_back(mse_case(s.model + " ", {s.N, s.side, s.side, s.width}));
}

}  // namespace tessera
