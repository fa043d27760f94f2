// Cases of residual_block: the fused form, which must equal the composed one. Each with an input of
// its own, and as in an up block with concat(upsample(x), skip) for input.
#include "autograd/residual_block.h"
#include "autograd/ops.h"
#include "tests/op_cases.h"

namespace tessera {
namespace {

struct Sizes {
  Shape x;
  int64_t B;  // channels of the skip, 0: none
  int64_t K;  // channels out
  int groups;
};

// Inputs: x, t, conv1 w b, norm1 gamma beta, conv2 w b, norm2 gamma beta; then the shortcut's w b
// if there is one; then the skip if there is one.
Apply block(ops::Fusion fusion, const NormAct& spec, bool shortcut, bool skip) {
  return [=](Tape& tape, const std::vector<Var>& in) {
    ops::ResidualBlockArgs args{spec,  in[2], in[3], in[4], in[5], in[6],
                                in[7], in[8], in[9], {},    {}};
    if (shortcut) args.shortcut_w = in[10], args.shortcut_b = in[11];
    return ops::residual_block(tape, fusion, in[0], skip ? in.back() : Var{}, in[1], args);
  };
}

// What the fused act keeps in bf16 between its passes, and the gradients of that.
Apply rounded_block(const NormAct& spec, bool shortcut, bool skip) {
  return [=](Tape& tape, const std::vector<Var>& in) {
    const auto stored = [&](const Var& x) { return rounded_to_bf16(tape, x); };
    const ConvSpec same{1, 1, 1};
    const Var x = skip ? ops::concat_upsample(tape, in[0], in.back()) : in[0];
    const Var y1 = stored(ops::conv2d(tape, same, x, in[2], in[3]));
    const Var h = stored(ops::group_norm_act(tape, spec, y1, in[4], in[5], in[1], {}));
    const Var y2 = stored(ops::conv2d(tape, same, h, in[6], in[7]));
    const Var s = shortcut ? stored(ops::conv2d(tape, {}, x, in[10], in[11])) : x;
    return ops::group_norm_act(tape, spec, y2, in[8], in[9], {}, s);
  };
}

OpCase residual_block_case(const std::string& name, const Sizes& s, Activation act) {
  const NormAct spec{{s.groups}, act};
  const int64_t N = s.x[0], scale = s.B ? 2 : 1, H = scale * s.x[1], W = scale * s.x[2];
  const int64_t C = s.x[3] + s.B, K = s.K;
  const Shape vector{K};
  OpCase c;
  c.op = "residual_block";
  c.name = concat(name, name_of(act), ' ', s.x, s.B ? " + skip " : "",
                  s.B ? std::to_string(s.B) : "", " -> ", K, " in ", s.groups, " groups");
  c.inputs = {s.x,    {N, K},       {K, 3, 3, C}, vector, vector,
              vector, {K, 3, 3, K}, vector,       vector, vector};
  c.roles = {Role::Activation, Role::Activation, Role::Weight, Role::Vector, Role::Vector,
             Role::Vector,     Role::Weight,     Role::Vector, Role::Vector, Role::Vector};
  if (C != K) c.roles.insert(c.roles.end(), {Role::Weight, Role::Vector});
  if (C != K) c.inputs.insert(c.inputs.end(), {Shape{K, 1, 1, C}, vector});
  if (s.B) c.inputs.push_back({N, H, W, s.B});
  c.apply = block(ops::Fusion::On, spec, C != K, s.B > 0);
  c.composition = block(ops::Fusion::Off, spec, C != K, s.B > 0);
  c.bf16_steps = c.cpu_bf16_steps = rounded_block(spec, C != K, s.B > 0);
  if (s.B) c.upsampled = s.x[3];
  c.tolerance = 3e-5;  // a chain of two norms, whose statistics round too
  const double products = double(N * H * W * K) * double(9 * C + 9 * K + (C != K ? C : 0));
  const double bytes = f32_bytes(c.inputs) + f32_bytes({{N, H, W, K}});
  c.forward = {2 * products, bytes};
  c.backward = {4 * products, bytes + f32_bytes(c.inputs)};
  return c;
}

}  // namespace

void add_residual_block_cases(CaseTable& table) {
  // At least two channels a group: else a bias before a norm has no gradient to compare.
  for (Activation act : {Activation::Gelu, Activation::GeluTanh, Activation::Relu})
    for (const Sizes& s : {Sizes{{2, 6, 4, 16}, 0, 16, 4},
                           {{1, 5, 7, 12}, 0, 16, 8},
                           {{2, 3, 3, 20}, 0, 8, 1},
                           {{1, 9, 7, 24}, 0, 40, 8},
                           {{3, 1, 2, 7}, 0, 21, 3},
                           {{0, 4, 4, 8}, 0, 16, 8},
                           {{2, 3, 2, 16}, 8, 8, 4},
                           {{1, 5, 3, 20}, 7, 21, 3},
                           {{2, 2, 2, 5}, 3, 8, 2},
                           {{0, 4, 4, 8}, 4, 8, 4}})
      table.tests.push_back(residual_block_case("", s, act));

  for (const Stage& s : stages()) {
    const auto add = [&](const Shape& x, int64_t B) {
      table.benchmarks.push_back(
          residual_block_case(s.model + " ", {x, B, s.width, 8}, Activation::Gelu));
    };
    add({s.N, s.side, s.side, s.width}, 0);
    if (!s.bottleneck) add({s.N, s.side / 2, s.side / 2, 2 * s.width}, s.width);
  }
}

}  // namespace tessera
