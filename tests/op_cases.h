// The case table: every differentiable op at the shapes at which it is tested and timed. One entry
// feeds the comparison with the f64 oracle, the gradient check, the comparison with its composition
// and the benchmark, so a new op writes its shapes and its cost once, in one file under tests/ops/.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "autograd/tape.h"

namespace tessera {

// Of one call in f32: floating point operations, and bytes if every tensor moves once.
struct Cost {
  double flops = 0, bytes = 0;
};

using Apply = std::function<Var(Tape&, const std::vector<Var>&)>;

struct OpCase {
  std::string op, name;  // "conv2d", "3x3 [1,31,33,3] -> 7"
  std::vector<Shape> inputs;
  Apply apply;
  Cost forward, backward;

  Apply composition = nullptr;  // the same out of other ops, if there is such a thing
  int constants = 0;            // the last of the inputs that get no gradient
  bool exact = false;           // sums of products of inputs: exact on small integers
  float scale = 1;              // standard deviation of random inputs
  double tolerance = 1e-5;      // of f32 against f64, see difference() in op_runner.h
};

struct CaseTable {
  std::vector<OpCase> tests, benchmarks;
};

// Every op: the sum of the functions below, one per file of tests/ops/.
CaseTable all_cases();

void add_conv2d_cases(CaseTable& table);
void add_linear_cases(CaseTable& table);
void add_gelu_cases(CaseTable& table);
void add_group_norm_cases(CaseTable& table);
void add_layout_cases(CaseTable& table);
void add_concat_cases(CaseTable& table);
void add_upcat_conv2d_cases(CaseTable& table);
void add_sum_cases(CaseTable& table);
void add_residual_block_cases(CaseTable& table);

// Bytes of f32 tensors.
double f32_bytes(const std::vector<Shape>& shapes);

// The resolutions of a network, from the image to the bottleneck: activations [N,side,side,width].
struct Stage {
  std::string model;  // "lesson 64x64x64": name, side, side, width
  int64_t N, side, width;
  bool bottleneck;
};
// Of the presets lesson and quick.
std::vector<Stage> stages();

}  // namespace tessera
