// Cases of conv2d.
#include "autograd/ops.h"
#include "tests/op_cases.h"

namespace tessera {
namespace {

OpCase conv2d_case(const std::string& name, const ConvSpec& spec, const Shape& x, const Shape& w,
                   bool bias = true) {
  const auto problem = ConvProblem::of(spec, x, w);
  OpCase c;
  c.op = "conv2d";
  c.name = concat(name, " ", x, " ", w, bias ? "" : " without bias");
  c.inputs = {x, w};
  c.roles = {Role::Activation, Role::Weight, Role::Vector};
  if (bias) c.inputs.push_back({w[0]});
  c.apply = [spec](Tape& tape, const std::vector<Var>& in) {
    return ops::conv2d(tape, spec, in[0], in[1], in.size() > 2 ? in[2] : Var{});
  };
  c.exact = true;
  c.conv = problem;
  // A 2x2 stride-2 convolution is a 1x1 convolution after space_to_channel, and its filter
  // [K,2,2,C] becomes the 1x1 filter [K,1,1,4C] by that very rearrangement.
  const bool patches = w[1] == 2 && w[2] == 2 && spec.stride == 2 && spec.pad_h + spec.pad_w == 0;
  if (patches && x[1] % 2 == 0 && x[2] % 2 == 0)
    c.composition = [](Tape& tape, const std::vector<Var>& in) {
      return ops::conv2d(tape, {}, ops::space_to_channel(tape, in[0]),
                         ops::space_to_channel(tape, in[1]), in[2]);
    };
  c.forward = {problem.flops(), f32_bytes({x, w, problem.y()})};
  // The data's gradient reads dy and w, the filter's reads x and dy.
  c.backward = {2 * problem.flops(), f32_bytes({problem.y(), w, x, x, problem.y(), w})};
  return c;
}

struct Sizes {
  int64_t N, H, W, C, K;
};

void add_all(CaseTable& table, const std::string& name, const ConvSpec& spec, int64_t R, int64_t S,
             const std::vector<Sizes>& list) {
  for (const Sizes& s : list)
    table.tests.push_back(conv2d_case(name, spec, {s.N, s.H, s.W, s.C}, {s.K, R, S, s.C}));
}

// One channel on one side, which the CUDA kernels of conv_thin.h take, and what just misses them.
void add_thin(CaseTable& table) {
  // Several tiles, and slices of channels.
  add_all(table, "3x3", {1, 1, 1}, 3, 3, {{2, 9, 35, 1, 72}, {0, 8, 8, 1, 8}, {1, 6, 7, 16, 1}});
  add_all(table, "3x3 unpadded", {1, 0, 0}, 3, 3, {{2, 11, 9, 1, 16}, {1, 3, 3, 1, 8}});
  add_all(table, "3x3 padded by 2", {1, 2, 2}, 3, 3, {{1, 1, 2, 1, 8}, {1, 0, 5, 1, 8}});
  add_all(table, "3x3 padded in width", {1, 0, 1}, 3, 3, {{1, 4, 3, 1, 8}});
  add_all(table, "3x3 stride 2", {2, 1, 1}, 3, 3, {{1, 7, 6, 1, 8}});
  add_all(table, "1x3", {1, 0, 1}, 1, 3, {{1, 4, 5, 1, 8}});
  add_all(table, "1x1", {}, 1, 1,
          {{1, 9, 34, 1, 16},
           {2, 9, 35, 72, 1},
           {1, 3, 3, 264, 1},  // more packs than lanes
           {3, 1, 1, 64, 1},
           {2, 5, 4, 1, 1},
           {0, 4, 4, 8, 1}});
  add_all(table, "1x1 padded", {1, 1, 2}, 1, 1, {{1, 4, 3, 1, 8}, {1, 4, 3, 8, 1}});
  add_all(table, "1x1 stride 2", {2, 0, 0}, 1, 1, {{1, 7, 5, 1, 8}, {1, 7, 5, 8, 1}});
}

void add_tests(CaseTable& table) {
  add_all(table, "3x3", {1, 1, 1}, 3, 3,
          {{1, 1, 1, 1, 1},    {2, 7, 5, 3, 7},    {1, 31, 33, 3, 7}, {1, 33, 32, 1, 1},
           {2, 13, 11, 7, 20}, {1, 32, 32, 1, 24}, {1, 5, 7, 20, 24}, {1, 9, 8, 40, 24},
           {1, 8, 8, 24, 40},  {1, 6, 5, 65, 20},  {3, 2, 2, 20, 65}, {4, 4, 4, 64, 64},
           {1, 17, 1, 7, 3},   {1, 1, 19, 3, 20},  {0, 8, 8, 3, 7},   {1, 7, 7, 1, 65},
           {1, 7, 5, 33, 40},  // from 32 channels on the CPU goes by Winograd's tiles, but
           {2, 3, 10, 32, 36}, {3, 4, 4, 32, 33},  // not where there are fewer than four, or
           {4, 1, 1, 32, 32}});                    // most of a tile would be empty
  for (int64_t n : edge_sizes())
    add_all(table, "3x3", {1, 1, 1}, 3, 3, {{1, n, 2, 3, 5}, {1, 2, n, 2, 3}});
  add_all(table, "3x3 unpadded", {1, 0, 0}, 3, 3,
          {{1, 7, 9, 7, 20}, {1, 3, 3, 20, 3}, {2, 6, 7, 40, 33}});
  add_all(table, "3x3 padded by 2", {1, 2, 2}, 3, 3,
          {{2, 5, 4, 3, 7}, {1, 5, 4, 32, 33}, {2, 0, 5, 32, 33}, {2, 0, 6, 32, 33}});
  add_all(table, "3x3 padded in width", {1, 0, 1}, 3, 3, {{4, 4, 3, 32, 32}, {4, 4, 4, 32, 32}});
  add_all(table, "3x3 padded by 3 in height", {1, 3, 0}, 3, 3,
          {{2, 1, 7, 33, 32}, {2, 1, 6, 33, 32}});
  add_all(table, "1x1", {}, 1, 1,
          {{2, 5, 7, 3, 20},
           {1, 31, 33, 7, 1},
           {1, 1, 1, 65, 7},
           {1, 16, 16, 40, 24},
           {1, 32, 32, 1, 20},
           {2, 4, 4, 96, 32},
           {1, 10, 12, 35, 39},
           {0, 4, 4, 8, 8}});
  add_all(table, "1x1 stride 2", {2, 0, 0}, 1, 1,
          {{1, 7, 5, 3, 7}, {1, 6, 16, 4, 6}, {1, 8, 10, 1, 16}, {2, 5, 6, 24, 8}});
  add_all(table, "2x2 stride 2", {2, 0, 0}, 2, 2,
          {{2, 8, 6, 3, 7},
           {1, 32, 32, 7, 20},
           {1, 7, 5, 3, 7},
           {1, 2, 2, 20, 40},
           {1, 33, 31, 1, 3},
           {2, 6, 10, 65, 24},
           {0, 8, 8, 3, 7}});
  add_all(
      table, "3x3 stride 2", {2, 1, 1}, 3, 3,
      {{2, 8, 6, 7, 20}, {1, 31, 33, 3, 7}, {1, 1, 1, 24, 3}, {1, 9, 7, 40, 20}, {0, 8, 8, 3, 7}});
  add_all(table, "5x3", {1, 2, 1}, 5, 3, {{1, 11, 7, 3, 20}, {2, 5, 5, 20, 7}, {1, 1, 1, 7, 3}});
  add_all(table, "5x3 padded in height", {1, 2, 0}, 5, 3, {{1, 7, 6, 3, 7}});
  add_all(table, "7x7", {1, 3, 3}, 7, 7, {{1, 9, 8, 3, 7}});
  add_thin(table);
  for (const Sizes& s :
       {Sizes{2, 6, 5, 7, 20}, {1, 5, 6, 32, 40}, {1, 5, 7, 32, 40}, {1, 5, 6, 1, 8}})
    table.tests.push_back(
        conv2d_case("3x3", {1, 1, 1}, {s.N, s.H, s.W, s.C}, {s.K, 3, 3, s.C}, false));
  table.tests.push_back(conv2d_case("1x1", {}, {1, 5, 6, 8}, {1, 1, 1, 8}, false));
}

}  // namespace

void add_conv2d_cases(CaseTable& table) {
  add_tests(table);
  for (const Stage& s : stages()) {
    const auto add = [&](const char* name, const ConvSpec& spec, int64_t C, int64_t K, int64_t R) {
      table.benchmarks.push_back(
          conv2d_case(concat(s.model, " ", name), spec, {s.N, s.side, s.side, C}, {K, R, R, C}));
    };
    add("3x3", {1, 1, 1}, s.width, s.width, 3);
    if (s.bottleneck) continue;
    add("3x3 of an up block", {1, 1, 1}, 3 * s.width, s.width, 3);
    add("1x1 shortcut", {}, 3 * s.width, s.width, 1);
    add("2x2 stride 2", {2, 0, 0}, s.width, 2 * s.width, 2);
  }
  for (const Model& m : models()) {
    const auto add = [&](const char* name, const ConvSpec& spec, int64_t C, int64_t K, int64_t R) {
      table.benchmarks.push_back(
          conv2d_case(concat(m.name, name), spec, {m.N, m.side, m.side, C}, {K, R, R, C}));
    };
    add(" first", {1, 1, 1}, 1, m.base, 3);
    add(" last", {}, m.base, 1, 1);
  }
}

}  // namespace tessera
