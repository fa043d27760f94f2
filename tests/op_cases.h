// The case table: every differentiable op at the shapes at which it is tested and timed. One entry
// feeds the comparison with the f64 oracle, the gradient check, the comparison with its composition
// and the benchmark, so a new op writes its shapes and its cost once, in one file under tests/ops/.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "autograd/tape.h"

namespace tessera {

// Of one call in f32: floating point operations, and bytes if every tensor moves once.
struct Cost {
  double flops = 0, bytes = 0;
};

using Apply = std::function<Var(Tape&, const std::vector<Var>&)>;

// Where an input's value and gradient lie when activations are stored in bf16: an activation in
// bf16 both, a weight in bf16 with its gradient in f32, a vector (bias, gamma, beta) in f32.
enum class Role { Activation, Weight, Vector };

struct OpCase {
  std::string op, name;  // "conv2d", "3x3 [1,31,33,3] -> 7"
  std::vector<Shape> inputs;
  Apply apply;
  Cost forward, backward;

  Apply composition = nullptr;           // the same out of other ops, if there is such a thing
  std::vector<Role> roles = {};          // of the first inputs; the others are activations
  int constants = 0;                     // the last of the inputs that get no gradient
  bool exact = false;                    // sums of products of inputs: exact on small integers
  Apply bf16_steps = nullptr;            // with rounded_to_bf16() where kernels store results on
                                         // the way, if there are such: those of CUDA, and
  Apply cpu_bf16_steps = nullptr;        // the CPU's
  float scale = 1;                       // standard deviation of random inputs
  double tolerance = 1e-5;               // of f32 against f64, see difference() in op_runner.h
  std::optional<ConvProblem> conv = {};  // what a library would do instead; its bias comes last
  int64_t upsampled = 0;  // first channels of the first weight: of an upsampled image
};

struct CaseTable {
  std::vector<OpCase> tests, benchmarks;
};

// Every op: the sum of the functions below, one per file of tests/ops/.
CaseTable all_cases();

void add_conv2d_cases(CaseTable& table);
void add_linear_cases(CaseTable& table);
void add_split_cases(CaseTable& table);
void add_activation_cases(CaseTable& table);
void add_group_norm_cases(CaseTable& table);
void add_batch_norm_cases(CaseTable& table);
void add_conv_transpose2d_cases(CaseTable& table);
void add_pooling_cases(CaseTable& table);
void add_layout_cases(CaseTable& table);
void add_concat_cases(CaseTable& table);
void add_upcat_conv2d_cases(CaseTable& table);
void add_sum_cases(CaseTable& table);
void add_residual_block_cases(CaseTable& table);

Role role_of(const OpCase& c, size_t input);
DType value_dtype(const OpCase& c, size_t input, DType storage);
DType gradient_dtype(const OpCase& c, size_t input, DType storage);

// x, with its value and its gradient as bf16 would hold them: a step of the oracle.
Var rounded_to_bf16(Tape& tape, const Var& x);

// Channels, heights, widths and lengths at which packs, warps and tiles end or nearly do, one
// dimension at a time: [N,H,W,C] with 63, 65, 127, 128 or 129 in one place and little elsewhere.
std::vector<int64_t> edge_sizes();
std::vector<Shape> edge_shapes();

// Bytes of f32 tensors.
double f32_bytes(const std::vector<Shape>& shapes);

// A network whose shapes are timed: images [N,side,side,1], base channels at full resolution.
struct Model {
  std::string name;
  int64_t N, side, base;
};
// The presets lesson, at two batch sizes, and quick.
std::vector<Model> models();

// The resolutions of a network, from the image to the bottleneck: activations [N,side,side,width].
struct Stage {
  std::string model;  // "lesson 64x64x64": name, side, side, width
  int64_t N, side, width;
  bool bottleneck;  // nothing goes down from here or comes up to it
};
// What other networks have, "sweep 8x8x1280": each as if more stages were below it.
std::vector<Stage> sweep();
// Of the models, and the sweep.
std::vector<Stage> stages();

}  // namespace tessera
