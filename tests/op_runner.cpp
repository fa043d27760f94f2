#include "tests/op_runner.h"

#include <algorithm>
#include <cmath>

#include "core/rng.h"
#include "kernels/cpu/winograd.h"

namespace tessera {
namespace {

uint64_t hash(const std::string& text) {  // FNV-1a
  uint64_t h = 0xcbf29ce484222325;
  for (unsigned char c : text) h = (h ^ c) * 0x100000001b3;
  return h;
}

}  // namespace

Values as_bf16(Values values) {
  for (double& x : values.data) x = to_float(to_bf16(float(x)));
  return values;
}

Values values_of(Stream& stream, const Tensor& tensor) {
  if (tensor.dtype() == DType::f64) return {tensor.shape(), tensor.to_vector<double>(stream)};
  if (tensor.dtype() == DType::bf16) {
    const std::vector<bf16> values = tensor.to_vector<bf16>(stream);
    Values result{tensor.shape(), std::vector<double>(values.size())};
    std::ranges::transform(values, result.data.begin(), [](bf16 x) { return to_float(x); });
    return result;
  }
  const std::vector<float> values = tensor.to_vector<float>(stream);
  return {tensor.shape(), {values.begin(), values.end()}};
}

Tensor tensor_of(Stream& stream, const Values& values, DType dtype, int64_t shift) {
  if (shift > 0) {
    const Tensor source = tensor_of(stream, values, dtype),
                 all = Tensor::empty(stream, {source.numel() + shift}, dtype);
    Tensor part = all.slice(shift, source.shape());
    std::vector<std::byte> bytes(source.bytes());
    source.copy_to(stream, bytes);
    part.copy_from(stream, bytes);
    return part;
  }
  if (dtype == DType::f64) return Tensor::from<double>(stream, values.shape, values.data);
  if (dtype == DType::bf16) {
    std::vector<bf16> rounded(values.data.size());
    std::ranges::transform(values.data, rounded.begin(),
                           [](double x) { return to_bf16(float(x)); });
    return Tensor::from<bf16>(stream, values.shape, rounded);
  }
  return Tensor::from<float>(stream, values.shape,
                             std::vector<float>(values.data.begin(), values.data.end()));
}

Values draw(Numbers numbers, const std::string& name, uint32_t stream, const Shape& shape,
            float scale) {
  const RngKey key{hash(name), 0, stream, Purpose::noise};
  Values result{shape, std::vector<double>(size_t(shape.numel()))};
  for (size_t i = 0; i < result.data.size(); ++i) {
    const uint32_t block = uint32_t(i / 4), lane = i % 4;
    result.data[i] = numbers == Numbers::Normal
                         ? double(scale * normal4(key, block)[lane])
                         : double(uniform_below(random4(key, block)[lane], 9)) - 4;
  }
  return result;
}

std::vector<Values> draw_inputs(const OpCase& c, Numbers numbers) {
  std::vector<Values> inputs;
  for (const Shape& shape : c.inputs)
    inputs.push_back(draw(numbers, c.op + c.name, uint32_t(inputs.size()), shape, c.scale));
  return inputs;
}

Values upstream(const OpCase& c, Numbers numbers, const Shape& y) {
  return draw(numbers, c.op + c.name, 1000, y);
}

Values prior_gradient(const OpCase& c, Numbers numbers, size_t input) {
  return draw(numbers, c.op + c.name, 2000 + uint32_t(input), c.inputs[input]);
}

Result run(Stream& stream, const OpCase& c, const Apply& apply, DType storage, Numbers numbers,
           GradMode mode, DType rounded, size_t shifted) {
  const size_t wanted = c.inputs.size() - size_t(c.constants);
  // In the type that a run in `rounded` has, then in that of this run.
  const auto put = [&](size_t number, const Values& values, DType as, DType dtype) {
    return tensor_of(stream, as == DType::bf16 ? as_bf16(values) : values, dtype,
                     number == shifted ? 1 : 0);
  };
  std::vector<Var> inputs;
  for (const Values& values : draw_inputs(c, numbers)) {
    const size_t i = inputs.size();
    Var input = Var::leaf(put(i, values, value_dtype(c, i, rounded), value_dtype(c, i, storage)),
                          i < wanted);
    input.slot->dtype = gradient_dtype(c, i, storage);
    inputs.push_back(std::move(input));
  }
  if (mode == GradMode::Accumulate)
    for (size_t i = 0; i < wanted; ++i) {
      inputs[i].slot->grad = put(inputs.size() + 1 + i, prior_gradient(c, numbers, i),
                                 gradient_dtype(c, i, rounded), gradient_dtype(c, i, storage));
      inputs[i].slot->written = true;
    }

  Tape tape(stream);
  const Var y = apply(tape, inputs);
  Result result{values_of(stream, y.value), {}};
  // A loss has master_of(storage): f32 stays f32.
  const bool is_loss = y.shape() == Shape{1} && y.value.dtype() != DType::bf16;
  tape.backward_from(y, put(inputs.size(), upstream(c, numbers, y.shape()),
                            is_loss ? storage : rounded, y.value.dtype()));
  for (size_t i = 0; i < wanted; ++i)
    result.gradients.push_back(values_of(stream, inputs[i].grad()));
  return result;
}

Values only_gradient(Stream& stream, const OpCase& c, DType storage, size_t input) {
  std::vector<Var> inputs;
  for (const Values& values : draw_inputs(c, Numbers::Normal)) {
    const size_t i = inputs.size();
    inputs.push_back(Var::leaf(tensor_of(stream, values, value_dtype(c, i, storage)), i == input));
    inputs.back().slot->dtype = gradient_dtype(c, i, storage);
  }
  Tape tape(stream);
  const Var y = c.apply(tape, inputs);
  tape.backward_from(y,
                     tensor_of(stream, upstream(c, Numbers::Normal, y.shape()), y.value.dtype()));
  return values_of(stream, inputs[input].grad());
}

Result as_stored(Result result, const OpCase& c, DType storage) {
  if (storage != DType::bf16) return result;
  result.y = as_bf16(result.y);
  for (size_t i = 0; i < result.gradients.size(); ++i)
    if (gradient_dtype(c, i, storage) == DType::bf16)
      result.gradients[i] = as_bf16(result.gradients[i]);
  return result;
}

double root_mean_square(const Values& values) {
  double squares = 0;
  for (double value : values.data) squares += value * value;
  return std::sqrt(squares / double(std::max<size_t>(values.data.size(), 1)));
}

std::string difference(const Values& got, const Values& expected, double tolerance) {
  if (got.shape != expected.shape)
    return concat("shape ", got.shape, ", expected ", expected.shape);
  const double rms = root_mean_square(expected);
  double worst = 0;
  std::string result;
  for (size_t i = 0; i < got.data.size(); ++i) {
    const double error = std::abs(got.data[i] - expected.data[i]);
    const double allowed = tolerance * (std::abs(expected.data[i]) + rms);
    if (error <= allowed || error <= worst) continue;  // NaN is neither
    worst = error;
    result = concat("element ", i, " of ", got.shape, " is ", got.data[i], ", expected ",
                    expected.data[i], " (error ", error, ", allowed ", allowed, ")");
    if (!std::isfinite(error)) break;
  }
  return result;
}

std::string difference(const Result& got, const Result& expected, double tolerance) {
  const std::string y = difference(got.y, expected.y, tolerance);
  if (!y.empty()) return "output: " + y;
  if (got.gradients.size() != expected.gradients.size())
    return concat(got.gradients.size(), " gradients, expected ", expected.gradients.size());
  for (size_t i = 0; i < got.gradients.size(); ++i) {
    const std::string d = difference(got.gradients[i], expected.gradients[i], tolerance);
    if (!d.empty()) return concat("gradient of input ", i, ": ", d);
  }
  return "";
}

double integer_tolerance(Stream& stream, const OpCase& c, DType storage) {
  if (!c.conv) return 0;
  ConvProblem p = *c.conv;
  p.C -= c.upsampled;
  const bool tiles = cpu::goes_by_winograd(stream, p, Tensor::empty(stream, {0}, storage));
  return tiles ? c.tolerance : 0;
}

std::string norm_difference(const Result& got, const Result& expected, double tolerance) {
  const auto norm = [](const Values& values) {
    double squares = 0;
    for (double x : values.data) squares += x * x;
    return std::sqrt(squares);
  };
  const auto compare = [&](const std::string& what, const Values& a, const Values& b,
                           double scale) -> std::string {
    if (a.shape != b.shape) return concat(what, ": shape ", a.shape, ", expected ", b.shape);
    Values error = a;
    for (size_t i = 0; i < error.data.size(); ++i) error.data[i] -= b.data[i];
    if (norm(error) <= tolerance * scale) return "";  // NaN is not
    return concat(what, " ", a.shape, ": error ", norm(error), ", allowed ", tolerance * scale);
  };
  if (got.gradients.size() != expected.gradients.size())
    return concat(got.gradients.size(), " gradients, expected ", expected.gradients.size());
  double squares = 0;
  for (const Values& gradient : expected.gradients) squares += std::pow(norm(gradient), 2);
  std::string result = compare("output", got.y, expected.y, norm(expected.y));
  for (size_t i = 0; result.empty() && i < got.gradients.size(); ++i)
    result = compare(concat("gradient of input ", i), got.gradients[i], expected.gradients[i],
                     std::max(norm(expected.gradients[i]), 1e-3 * std::sqrt(squares)));
  return result;
}

std::shared_ptr<Device> poisoned(DeviceType type, int threads) {
  auto device = Device::open(type, threads);
  device->pool()->set_poison(true);
  return device;
}

}  // namespace tessera
