// Kernels where the case table does not come: at numbers that are huge, infinite or no numbers,
// and those that have no gradient. The optimizer's are in test_adam.cpp, noise is in test_rng.cpp.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "kernels/kernels.h"
#include "tests/cuda_devices.h"

using namespace tessera;

namespace {

const std::vector<int64_t> kSizes{1, 15, 17, 1000, 16384, 16385, 100003};

void check_non_finite(Stream& stream, DType dtype) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInf = std::numeric_limits<double>::infinity();
  for (int64_t size : kSizes) {
    INFO(name_of(stream.device().type()) << ' ' << size << ' ' << name_of(dtype));
    const Values good = normal("x", {size});
    CHECK(find_non_finite(stream, tensor_of(stream, good, dtype)) == -1);
    for (double bad : {kNan, -kNan, kInf, -kInf})
      for (int64_t at : {int64_t{0}, size / 2, size - 1}) {
        Values values = good;
        values.data[size_t(at)] = values.data.back() = bad;
        CHECK(find_non_finite(stream, tensor_of(stream, values, dtype)) == at);
      }
  }
  CHECK(find_non_finite(stream, Tensor::empty(stream, {0}, dtype)) == -1);
}

}  // namespace

TEST_CASE("the first value that is not finite is found", "[kernels][cuda]") {
  Stream stream(poisoned_cpu());
  check_non_finite(stream, DType::f64);
  check_non_finite(stream, DType::f32);
  check_non_finite(stream, DType::bf16);
  on_cuda_devices([](Stream& cuda) {
    check_non_finite(cuda, DType::f32);
    check_non_finite(cuda, DType::bf16);
  });
}

TEST_CASE("the largest and the smallest numbers are finite", "[kernels][cuda]") {
  on_all_devices([](Stream& stream) {
    const std::vector<float> values{3.4028235e38f, -3.4028235e38f, 1e-45f};
    CHECK(find_non_finite(stream, Tensor::from<float>(stream, {3}, values)) == -1);
  });
}

TEST_CASE("a long tensor is searched to its end", "[kernels][cuda]") {
  constexpr int64_t kLong = 5000001;  // more than one round of a full grid
  std::vector<float> values(kLong);
  values.back() = std::numeric_limits<float>::infinity();
  Stream stream(poisoned(DeviceType::simt));
  CHECK(find_non_finite(stream, Tensor::from<float>(stream, {kLong}, values)) == kLong - 1);
}

TEST_CASE("GELU and its derivative are finite far out", "[kernels][cuda]") {
  const std::vector<float> x{1e18f, -1e18f, 1e20f, -1e20f, 1e30f, -1e30f}, ones(x.size(), 1);
  std::vector<DeviceType> devices = cuda_device_types();
  devices.push_back(DeviceType::cpu);
  for (const DeviceType type : devices)
    for (const Activation form : {Activation::Gelu, Activation::GeluTanh, Activation::Relu}) {
      INFO(name_of(type) << ' ' << name_of(form));
      Stream stream(Device::open(type));
      const int64_t n = int64_t(x.size());
      const Tensor in = Tensor::from<float>(stream, {n}, x),
                   dy = Tensor::from<float>(stream, {n}, ones);
      Tensor y = Tensor::empty(stream, {n}), dx = Tensor::empty(stream, {n});
      activation_fwd(stream, form, in, y);
      activation_bwd(stream, form, in, dy, {dx});
      const auto values = y.to_vector<float>(stream), slopes = dx.to_vector<float>(stream);
      for (size_t i = 0; i < x.size(); ++i) {
        CHECK(values[i] == Approx(std::max(x[i], 0.0f)).margin(1e-6));
        CHECK(slopes[i] == Approx(x[i] > 0 ? 1 : 0).margin(1e-6));
      }
    }
}

namespace {

// In bf16, of all numbers that there are: the error of rounding and a thousandth of it, beside
// `floor`.
void check_every_bf16(Stream& stream, Activation act, double floor) {
  INFO(name_of(stream.device().type()) << ' ' << name_of(act));
  Values x{{}, {}};
  for (uint32_t bits = 0; bits < 0x10000; ++bits)
    if (const float value = to_float(bf16{uint16_t(bits)}); std::isfinite(value))
      x.data.push_back(value);
  const int64_t n = int64_t(x.data.size());
  x.shape = {n};
  Tensor y = Tensor::empty(stream, {n}, DType::bf16), dx = Tensor::empty(stream, {n}, DType::bf16);
  const Tensor in = tensor_of(stream, x, DType::bf16),
               dy = tensor_of(stream, {{n}, std::vector<double>(size_t(n), 1)}, DType::bf16);
  activation_fwd(stream, act, in, y);
  activation_bwd(stream, act, in, dy, {dx});
  const Values values = values_of(stream, y), slopes = values_of(stream, dx);
  constexpr double kShare = 0x1p-8 * 1.001;
  int64_t wrong = 0, wrong_slopes = 0;
  for (size_t i = 0; i < size_t(n); ++i) {
    const double v = x.data[i];
    double share, density;  // value = v share, slope = share + v density
    if (act == Activation::Gelu) {
      share = 0.5 * std::erfc(-v * M_SQRT1_2);
      density = std::exp(-0.5 * v * v) * 0.5 * M_SQRT1_2 * M_2_SQRTPI;
    } else {
      const double inner = 2 * M_SQRT1_2 * M_2_SQRTPI * (v + 0.044715 * v * v * v);
      share = 1 / (1 + std::exp(-inner));
      density = share * (1 / (1 + std::exp(inner))) * 2 * M_SQRT1_2 * M_2_SQRTPI *
                (1 + 3 * 0.044715 * v * v);
    }
    const double value = v * share, slope = share + v * density;
    wrong += !(std::fabs(values.data[i] - value) <= kShare * std::fabs(value) + floor);
    // Where its two terms cancel, their errors stay.
    const double terms = kShare * std::fabs(slope) + 4e-6 * (share + std::fabs(v * density));
    wrong_slopes += !(std::fabs(slopes.data[i] - slope) <= terms + floor);
  }
  CHECK(n == 2 * 0x7F80);
  CHECK(wrong == 0);
  CHECK(wrong_slopes == 0);
}

}  // namespace

TEST_CASE("GELU of every number of bf16", "[kernels][cuda]") {
  on_all_devices([&](Stream& stream) {
    // The CPU's formulas have an absolute error.
    const double floor = stream.device().type() == DeviceType::cpu ? 2e-6 : 1e-15;
    for (const Activation act : {Activation::Gelu, Activation::GeluTanh})
      check_every_bf16(stream, act, floor);
  });
}

namespace {

void check_relu(Stream& stream, DType dtype, int64_t repeats) {
  INFO(name_of(stream.device().type()) << ' ' << name_of(dtype) << ' ' << repeats);
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const std::vector<double> x{0.0, -0.0, 1e-30, -1e-30, 2, -2, kInf, -kInf, kNan},
      y{0, 0, 1e-30, 0, 2, 0, kInf, 0, kNan}, slope{0, 0, 1, 0, 1, 0, 1, 0, 1};
  const int64_t n = int64_t(x.size()) * repeats;
  Values in{{n}, {}}, up = in;
  for (int64_t i = 0; i < n; ++i) {
    in.data.push_back(x[size_t(i) % x.size()]);
    up.data.push_back(double(1 + i % 7));
  }
  const Tensor value = tensor_of(stream, in, dtype), dy = tensor_of(stream, up, dtype);
  Tensor out = Tensor::empty(stream, {n}, dtype), dx = tensor_of(stream, up, dtype);
  activation_fwd(stream, Activation::Relu, value, out);
  activation_bwd(stream, Activation::Relu, value, dy, {dx, GradMode::Accumulate});
  const Values got = values_of(stream, out), gradient = values_of(stream, dx);
  for (size_t i = 0; i < size_t(n); ++i) {
    INFO("x = " << in.data[i]);
    const double expected = y[i % y.size()];
    if (std::isnan(expected))
      CHECK(std::isnan(got.data[i]));
    else
      CHECK(got.data[i] == Approx(expected).epsilon(4e-3));
    CHECK(gradient.data[i] == up.data[i] * (1 + slope[i % slope.size()]));
  }
}

}  // namespace

TEST_CASE("ReLU at zero, NaN and infinity", "[kernels][cuda]") {
  for (int64_t repeats : {1, 8}) {  // packs and not
    Stream cpu(poisoned_cpu());
    check_relu(cpu, DType::f64, repeats);
    check_relu(cpu, DType::f32, repeats);
    on_cuda_devices([&](Stream& stream) {
      simt::options().trap_uninitialised = false;  // comparing a NaN looks like it
      check_relu(stream, DType::f32, repeats);
      check_relu(stream, DType::bf16, repeats);
    });
  }
}

TEST_CASE("fill writes every element", "[kernels][cuda]") {
  on_all_devices([](Stream& stream) {
    for (int64_t n : {0, 1, 255, 257, 1000}) {
      Tensor x = Tensor::empty(stream, {n});
      fill(stream, x, -2.5);
      CHECK(x.to_vector<float>(stream) == std::vector<float>(size_t(n), -2.5f));
    }
    Tensor x = Tensor::empty(stream, {33}, DType::bf16);
    fill(stream, x, 1 + 1e-4);  // rounds to 1
    CHECK(x.to_floats(stream) == std::vector<float>(33, 1.0f));
  });
  Stream cpu(Device::open(DeviceType::cpu));
  Tensor x = Tensor::empty(cpu, {7}, DType::f64);
  fill(cpu, x, 1.0 / 3);
  CHECK(x.to_vector<double>(cpu) == std::vector<double>(7, 1.0 / 3));
}

TEST_CASE("GroupNorm's pass by the moments that one left has the same bits", "[norm][cuda]") {
  on_all_devices([](Stream& stream) {
    for (DType dtype : {DType::f32, DType::bf16}) {
      for (Activation form : {Activation::Gelu, Activation::GeluTanh, Activation::Relu}) {
        const auto drawn = [&](const char* name, const Shape& shape, DType type) {
          return tensor_of(stream, normal(name, shape), type);
        };
        const Shape shape{2, 9, 7, 24};
        const Tensor x = drawn("x", shape, dtype), t = drawn("t", {2, 24}, dtype),
                     gamma = drawn("gamma", {24}, DType::f32),
                     beta = drawn("beta", {24}, DType::f32);
        Tensor first = Tensor::empty(stream, shape, dtype),
               again = Tensor::empty(stream, shape, dtype),
               moments = Tensor::empty(stream, {2, 4, 2});
        const NormAct spec{{4}, form};
        group_norm_act_fwd(stream, spec, x, gamma, beta, t, {}, first, moments);
        group_norm_act_fwd(stream, spec, x, gamma, beta, t, {}, again, moments, /*known=*/true);
        CHECK(first.to_floats(stream) == again.to_floats(stream));
        moments = Tensor::zeros(stream, moments.shape());  // are read, not computed again
        group_norm_act_fwd(stream, spec, x, gamma, beta, t, {}, again, moments, /*known=*/true);
        CHECK(first.to_floats(stream) != again.to_floats(stream));
      }
    }
  });
}
