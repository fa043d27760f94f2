// The case table of all ops.
#include "tests/op_cases.h"

namespace tessera {

CaseTable all_cases() {
  CaseTable table;
  for (auto* add :
       {add_conv2d_cases, add_linear_cases, add_gelu_cases, add_group_norm_cases, add_layout_cases,
        add_concat_cases, add_upcat_conv2d_cases, add_sum_cases, add_residual_block_cases})
    add(table);
  return table;
}

double f32_bytes(const std::vector<Shape>& shapes) {
  double sum = 0;
  for (const Shape& shape : shapes) sum += 4.0 * double(shape.numel());
  return sum;
}

std::vector<Stage> stages() {
  struct Model {
    const char* name;
    int64_t side, base;
  };
  std::vector<Stage> result;
  for (const Model& model : {Model{"lesson", 64, 64}, Model{"quick", 32, 32}})
    for (int level = 0; level <= 3; ++level) {
      const int64_t side = model.side >> level, width = model.base << level;
      result.push_back(
          {concat(model.name, " ", side, "x", side, "x", width), 32, side, width, level == 3});
    }
  return result;
}

}  // namespace tessera
