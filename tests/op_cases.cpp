// The case table of all ops.
#include "tests/op_cases.h"

#include "autograd/ops.h"
#include "tests/op_runner.h"

namespace tessera {

CaseTable all_cases() {
  CaseTable table;
  for (auto* add : {add_conv2d_cases, add_linear_cases, add_split_cases, add_activation_cases,
                    add_group_norm_cases, add_batch_norm_cases, add_conv_transpose2d_cases,
                    add_pooling_cases, add_layout_cases, add_concat_cases, add_upcat_conv2d_cases,
                    add_sum_cases, add_residual_block_cases})
    add(table);
  return table;
}

Role role_of(const OpCase& c, size_t input) {
  return input < c.roles.size() ? c.roles[input] : Role::Activation;
}
DType value_dtype(const OpCase& c, size_t input, DType storage) {
  return role_of(c, input) == Role::Vector ? master_of(storage) : storage;
}

DType gradient_dtype(const OpCase& c, size_t input, DType storage) {
  return role_of(c, input) == Role::Activation ? storage : master_of(storage);
}

Var rounded_to_bf16(Tape& tape, const Var& x) {
  const auto rounded = [](Stream& stream, const Tensor& tensor) {
    return tensor_of(stream, as_bf16(values_of(stream, tensor)), tensor.dtype());
  };
  Var y = tape.output(x.shape(), x.value.dtype(), {&x});
  y.value = rounded(tape.stream(), x.value);
  tape.record("rounded_to_bf16", {&x}, y, [rounded, x = x.slot](Stream& s, const Tensor& dy) {
    add_bwd(s, rounded(s, dy), x->out(s));
  });
  return y;
}

std::vector<int64_t> edge_sizes() { return {63, 65, 127, 128, 129}; }

std::vector<Shape> edge_shapes() {
  std::vector<Shape> shapes;
  for (int64_t n : edge_sizes())
    shapes.insert(shapes.end(), {{1, n, 2, 3}, {1, 2, n, 1}, {2, 1, 2, n}});
  return shapes;
}

double f32_bytes(const std::vector<Shape>& shapes) {
  double sum = 0;
  for (const Shape& shape : shapes) sum += 4.0 * double(shape.numel());
  return sum;
}

std::vector<Model> models() {
  return {{"lesson", 32, 64, 64}, {"lesson batch 128", 128, 64, 64}, {"quick", 32, 32, 32}};
}

namespace {

Stage stage(const std::string& name, int64_t N, int64_t side, int64_t width, bool bottleneck) {
  return {concat(name, ' ', side, 'x', side, 'x', width), N, side, width, bottleneck};
}

}  // namespace

std::vector<Stage> sweep() {
  std::vector<Stage> result;
  const std::pair<int64_t, int64_t> sizes[] = {{256, 32}, {256, 64},  {128, 64}, {128, 128},
                                               {64, 128}, {64, 320},  {32, 256}, {32, 640},
                                               {16, 512}, {16, 1280}, {8, 512},  {8, 1280}};
  for (const auto& [side, width] : sizes) result.push_back(stage("sweep", 16, side, width, false));
  return result;
}

std::vector<Stage> stages() {
  std::vector<Stage> result;
  for (const Model& model : models())
    for (int level = 0; level <= 3; ++level)
      result.push_back(
          stage(model.name, model.N, model.side >> level, model.base << level, level == 3));
  for (const Stage& s : sweep()) result.push_back(s);
  return result;
}

}  // namespace tessera
