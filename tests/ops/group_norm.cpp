// Cases of group_norm, and of group_norm_act, which must equal its composition.
#include "autograd/ops.h"
#include "tests/op_cases.h"

namespace tessera {
namespace {

OpCase group_norm_case(const std::string& name, const Shape& x, int groups) {
  OpCase c;
  c.op = "group_norm";
  c.name = concat(name, x, " in ", groups, " groups");
  c.inputs = {x, {x[3]}, {x[3]}};
  c.roles = {Role::Activation, Role::Vector, Role::Vector};
  c.apply = [groups](Tape& tape, const std::vector<Var>& in) {
    return ops::group_norm(tape, {groups}, in[0], in[1], in[2]);
  };
  c.forward = {8.0 * double(x.numel()), f32_bytes({x, x})};
  c.backward = {14.0 * double(x.numel()), f32_bytes({x, x, x})};
  return c;
}

// Inputs of the fused op: x, gamma, beta, then t and residual where they are used.
struct Parts {
  bool t, residual;
  Var time(const std::vector<Var>& in) const { return t ? in[3] : Var{}; }
  Var shortcut(const std::vector<Var>& in) const { return residual ? in[t ? 4 : 3] : Var{}; }
};

OpCase fused_case(const std::string& name, const Shape& x, const NormAct& spec, Parts parts) {
  OpCase c;
  c.op = "group_norm_act";
  c.name = concat(name_of(spec.act), ' ', name, x, " in ", spec.norm.groups, " groups",
                  parts.t ? " + t" : "", parts.residual ? " + residual" : "");
  c.inputs = {x, {x[3]}, {x[3]}};
  c.roles = {Role::Activation, Role::Vector, Role::Vector};
  if (parts.t) c.inputs.push_back({x[0], x[3]});
  if (parts.residual) c.inputs.push_back(x);
  c.apply = [=](Tape& tape, const std::vector<Var>& in) {
    return ops::group_norm_act(tape, spec, in[0], in[1], in[2], parts.time(in), parts.shortcut(in));
  };
  c.composition = [=](Tape& tape, const std::vector<Var>& in) {
    Var h = ops::group_norm(tape, spec.norm, in[0], in[1], in[2]);
    if (parts.t) h = ops::add_broadcast(tape, h, parts.time(in));
    h = ops::activation(tape, spec.act, h);
    return parts.residual ? ops::add(tape, h, parts.shortcut(in)) : h;
  };
  const double bytes = f32_bytes({x}), more = parts.residual ? bytes : 0;
  c.forward = {28.0 * double(x.numel()), 2 * bytes + more};
  c.backward = {44.0 * double(x.numel()), 3 * bytes + more};
  return c;
}

struct Sizes {
  Shape x;
  int groups;
};

}  // namespace

void add_group_norm_cases(CaseTable& table) {
  // At least three elements a group: with two, the true gradient of x nearly vanishes.
  for (const Sizes& s : {Sizes{{2, 4, 6, 16}, 8},
                         {{1, 1, 1, 64}, 8},
                         {{2, 1, 2, 24}, 8},
                         {{3, 5, 3, 21}, 7},
                         {{2, 3, 3, 20}, 1},
                         {{2, 31, 33, 3}, 1},
                         {{1, 33, 31, 7}, 7},
                         {{2, 16, 16, 8}, 8},
                         {{1, 13, 1, 65}, 5},
                         {{2, 7, 9, 40}, 8},
                         {{1, 5, 5, 1}, 1},
                         {{0, 4, 4, 16}, 8}})
    table.tests.push_back(group_norm_case("", s.x, s.groups));
  for (const Sizes& s : {Sizes{{2, 4, 6, 16}, 8},
                         {{3, 5, 3, 21}, 7},
                         {{2, 3, 3, 20}, 1},
                         {{1, 16, 17, 8}, 8},
                         {{0, 4, 4, 16}, 8}})
    for (Activation act : {Activation::Gelu, Activation::GeluTanh, Activation::Relu})
      for (const Parts& parts : {Parts{false, false}, {true, false}, {false, true}, {true, true}})
        table.tests.push_back(fused_case("", s.x, {{s.groups}, act}, parts));

  for (const Shape& x : edge_shapes()) {
    // Channels of a group: 9, 13, 127, 16, 43.
    const int64_t C = x[3];
    const int groups = C == 63 ? 7 : C == 65 ? 5 : C == 128 ? 8 : C == 129 ? 3 : 1;
    table.tests.push_back(group_norm_case("", x, groups));
    table.tests.push_back(fused_case("", x, {{groups}, Activation::Gelu}, {true, true}));
  }

  for (const Stage& s : stages()) {
    const Shape x{s.N, s.side, s.side, s.width};
    table.benchmarks.push_back(group_norm_case(s.model + " ", x, 8));
    table.benchmarks.push_back(fused_case(s.model + " ", x, {{8}}, {true, false}));
    table.benchmarks.push_back(fused_case(s.model + " ", x, {{8}}, {false, true}));
  }
}

}  // namespace tessera
