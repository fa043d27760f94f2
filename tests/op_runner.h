// Runs one case of the table on random numbers, in f32 or bf16 (the fast paths) or f64 (the
// oracle), and compares results. The numbers are floats, or what bf16 can hold, in both: both see
// the same.
#pragma once

#include <string>
#include <vector>

#include "tests/op_cases.h"

namespace tessera {

// The elements of a tensor of any floating-point type.
struct Values {
  Shape shape;
  std::vector<double> data;
};

// Rounded to what bf16 holds.
Values as_bf16(Values values);

Values values_of(Stream& stream, const Tensor& tensor);
// `shift` elements into its memory.
Tensor tensor_of(Stream& stream, const Values& values, DType dtype, int64_t shift = 0);

enum class Numbers { Normal, Integers };  // Integers: -4 .. 4

// Numbers that depend on `name` and `stream` only.
Values draw(Numbers numbers, const std::string& name, uint32_t stream, const Shape& shape,
            float scale = 1);
inline Values normal(const std::string& name, const Shape& shape, float scale = 1) {
  return draw(Numbers::Normal, name, 0, shape, scale);
}
// The inputs of a case, the gradient of its output, and what an input's gradient holds before.
std::vector<Values> draw_inputs(const OpCase& c, Numbers numbers);
Values upstream(const OpCase& c, Numbers numbers, const Shape& y);
Values prior_gradient(const OpCase& c, Numbers numbers, size_t input);

struct Result {
  Values y;
  std::vector<Values> gradients;  // of the inputs that are not constants
};

// Forward and backward from upstream(), with activations stored as `storage`. With
// GradMode::Accumulate every input's gradient holds prior_gradient() already, to which the op must
// add. The numbers are rounded to what `rounded` would hold: the oracle of a bf16 run sees bf16's.
// Of the tensors that it makes, the inputs, y's gradient and, for Accumulate, the inputs'
// gradients, number `shifted` lies an element into its memory: between two packs.
Result run(Stream& stream, const OpCase& c, const Apply& apply, DType storage, Numbers numbers,
           GradMode mode, DType rounded, size_t shifted = SIZE_MAX);
inline Result run(Stream& stream, const OpCase& c, const Apply& apply, DType storage,
                  Numbers numbers, GradMode mode) {
  return run(stream, c, apply, storage, numbers, mode, storage);
}

// The gradient of one input, where nothing else is trained. Of Numbers::Normal.
Values only_gradient(Stream& stream, const OpCase& c, DType storage, size_t input);

// What a run in bf16 gives if every operation is exact: rounded where it is stored.
Result as_stored(Result result, const OpCase& c, DType storage);

double root_mean_square(const Values& values);  // 0 of none

// "" if every element is finite and
//   |got - expected| <= tolerance * (|expected| + root mean square of expected),
// else the worst one. A sum of products rounds in proportion to its terms, not to what is left when
// they cancel: hence the second term. 1e-5 is some 80 times f32's epsilon.
std::string difference(const Values& got, const Values& expected, double tolerance);
// The same for output and gradients.
std::string difference(const Result& got, const Result& expected, double tolerance);

// "" if the error of the output and of every gradient is within `tolerance` in the norm:
// |got - expected| <= tolerance * |expected|; for a gradient that nearly vanishes beside the
// others, a thousandth of their norm stands for its own.
std::string norm_difference(const Result& got, const Result& expected, double tolerance);

// Of sums of products of integers on the CPU: 0, but the case's where it goes by Winograd's tiles,
// whose products are of multiples by irrational numbers.
double integer_tolerance(Stream& stream, const OpCase& c, DType storage);

// A device whose memory holds NaN wherever nothing was written.
std::shared_ptr<Device> poisoned(DeviceType type, int threads = 2);
inline std::shared_ptr<Device> poisoned_cpu() { return poisoned(DeviceType::cpu); }

}  // namespace tessera
