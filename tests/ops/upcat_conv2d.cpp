// Cases of upcat_conv2d, which must equal upsampling, joining and a convolution.
#include "autograd/ops.h"
#include "core/simt/options.h"
#include "tests/op_cases.h"

namespace tessera {
namespace {

OpCase upcat_conv2d_case(const std::string& name, const Shape& low, int64_t B, int64_t K,
                         int64_t R) {
  const int64_t N = low[0], H = 2 * low[1], W = 2 * low[2], A = low[3];
  const Shape skip{N, H, W, B}, w{K, R, R, A + B}, y{N, H, W, K};
  const ConvSpec spec{1, int(R / 2), int(R / 2)};
  OpCase c;
  c.op = "upcat_conv2d";
  c.name = concat(name, R, "x", R, " ", low, " ", skip, " -> ", K);
  c.inputs = {low, skip, w, {K}};
  c.roles = {Role::Activation, Role::Activation, Role::Weight, Role::Vector};
  c.apply = [](Tape& tape, const std::vector<Var>& in) {
    return ops::upcat_conv2d(tape, in[0], in[1], in[2], in[3]);
  };
  c.composition = [spec](Tape& tape, const std::vector<Var>& in) {
    return ops::conv2d(tape, spec, ops::concat_upsample(tape, in[0], in[1]), in[2], in[3]);
  };
  c.exact = true;
  c.upsampled = A;
  // Its gradient is made in bf16, before low's is summed and skip's is added to what is there: but
  // for 1x1 filters, and where the sub-pixel form is taken.
  const bool packs = A % 8 == 0 && B % 8 == 0 && K % 8 == 0 && low[1] >= 5 && low[2] >= 5;
  if (R == 3)
    c.bf16_steps = [spec, packs](Tape& tape, const std::vector<Var>& in) {
      Var x = ops::concat_upsample(tape, in[0], in[1]);
      if (!packs || simt::options().profile.capability < 80) x = rounded_to_bf16(tape, x);
      return ops::conv2d(tape, spec, x, in[2], in[3]);
    };
  // Operations of the composition, so that the rates compare; the fused path needs fewer.
  c.conv = ConvProblem::of(spec, {N, H, W, A + B}, w);
  const double flops = c.conv->flops();
  c.forward = {flops, f32_bytes({low, skip, w, y})};
  c.backward = {2 * flops, 2 * f32_bytes({low, skip, w, y})};
  return c;
}

}  // namespace

void add_upcat_conv2d_cases(CaseTable& table) {
  struct Sizes {
    Shape low;
    int64_t B, K;
  };
  for (int64_t R : {1, 3})
    for (const Sizes& s :
         {Sizes{{1, 1, 1, 1}, 1, 1},
          {{2, 3, 5, 7}, 3, 20},
          {{1, 16, 17, 3}, 7, 1},
          {{2, 2, 4, 40}, 20, 24},
          {{1, 1, 7, 24}, 65, 3},
          {{3, 5, 1, 20}, 1, 7},
          {{2, 4, 4, 64}, 32, 32},
          {{2, 3, 1, 5}, 33, 34},
          {{2, 3, 2, 5}, 33, 34},
          {{2, 5, 6, 128}, 72, 40},  // the sub-pixel form, but not at 7.5: it needs
          {{1, 9, 5, 24}, 8, 8},     // packs of channels and 5 x 5 pixels of low
          {{1, 5, 9, 8}, 16, 24},
          {{3, 5, 5, 40}, 8, 16},
          {{0, 4, 4, 3}, 5, 7}})
      table.tests.push_back(upcat_conv2d_case("", s.low, s.B, s.K, R));
  for (int64_t n : edge_sizes()) {
    for (const Sizes& s : {Sizes{{1, n, 1, 3}, 2, 5}, {{1, 1, n, 2}, 3, 4}, {{1, 1, 2, n}, 2, 3}})
      table.tests.push_back(upcat_conv2d_case("", s.low, s.B, s.K, 3));
    table.tests.push_back(upcat_conv2d_case("", {1, 2, 1, 3}, n, 2, 1));
    table.tests.push_back(upcat_conv2d_case("", {1, 1, 2, 3}, 1, n, 3));
  }
  for (const Stage& s : stages()) {
    if (s.bottleneck) continue;
    const Shape low{s.N, s.side / 2, s.side / 2, 2 * s.width};
    for (int64_t R : {1, 3})
      table.benchmarks.push_back(upcat_conv2d_case(s.model + " ", low, s.width, s.width, R));
  }
}

}  // namespace tessera
