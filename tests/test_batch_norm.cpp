// BatchNorm beyond the case table: running statistics against their definition, evaluation by them,
// what is refused, and statistics of a recorded step. A maximum's ties and NaN, too.
#include <catch2/catch.hpp>
#include <cmath>

#include "autograd/ops.h"
#include "core/recording.h"
#include "tests/cuda_devices.h"
#include "tests/temp_dir.h"

using namespace tessera;
using Catch::Contains;

namespace {

constexpr float kEps = 1e-5f, kMomentum = 0.1f;

// Batches x [N,H,W,C] whose channels have means and deviations of their own: the first is constant.
Values batch(int number, const Shape& shape) {
  Values x = draw(Numbers::Normal, "x", uint32_t(number), shape);
  const int64_t C = shape[3];
  for (size_t i = 0; i < x.data.size(); ++i) {
    const auto c = int64_t(i) % C;
    x.data[i] = c == 0 ? 3 : x.data[i] * double(c) + 10.0 * double(c) + number;
  }
  return x;
}

// Mean and unbiased variance of each channel, in double precision.
struct Statistics {
  std::vector<double> mean, var;
};
Statistics statistics_of(const Values& x) {
  const auto C = size_t(x.shape[3]), count = x.data.size() / C;
  Statistics s{std::vector<double>(C), std::vector<double>(C)};
  for (size_t i = 0; i < x.data.size(); ++i) s.mean[i % C] += x.data[i] / double(count);
  for (size_t i = 0; i < x.data.size(); ++i)
    s.var[i % C] += std::pow(x.data[i] - s.mean[i % C], 2) / double(count - 1);
  return s;
}

struct Layer {
  Layer(Stream& stream, int64_t C, DType master)
      : gamma(Var::leaf(tensor_of(stream, normal("gamma", {C}), master))),
        beta(Var::leaf(tensor_of(stream, normal("beta", {C}), master))),
        state{Tensor::zeros(stream, {C}, master), Tensor::empty(stream, {C}, master)} {
    fill(stream, state.var, 1);
  }
  Var gamma, beta;
  ops::BatchNormState state;
};

void check_near(const std::vector<double>& got, const std::vector<double>& expected,
                double tolerance) {
  REQUIRE(got.size() == expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    INFO("element " << i << " is " << got[i] << ", expected " << expected[i]);
    CHECK(std::abs(got[i] - expected[i]) <= tolerance * std::abs(expected[i]));
  }
}

// Three steps of training, then evaluation of a fourth batch.
void check_statistics(Stream& stream, DType storage, double tolerance) {
  INFO(name_of(stream.device().type()) << ' ' << name_of(storage));
  const DType master = master_of(storage);
  const Shape shape{3, 9, 7, 11};
  Layer layer(stream, shape[3], master);
  Statistics running{std::vector<double>(11, 0.0), std::vector<double>(11, 1.0)};
  const auto rounded = [&](int number) {
    return values_of(stream, tensor_of(stream, batch(number, shape), storage));
  };
  for (int step = 0; step < 3; ++step) {
    const Values x = rounded(step);
    Tape tape(stream);
    ops::batch_norm(tape, Var::leaf(tensor_of(stream, x, storage), true), layer.gamma, layer.beta,
                    layer.state, true);
    const Statistics now = statistics_of(x);
    for (size_t c = 0; c < 11; ++c) {
      running.mean[c] += double(kMomentum) * (now.mean[c] - running.mean[c]);
      running.var[c] += double(kMomentum) * (now.var[c] - running.var[c]);
    }
  }
  check_near(values_of(stream, layer.state.mean).data, running.mean, tolerance);
  check_near(values_of(stream, layer.state.var).data, running.var, tolerance);

  const Values x = rounded(3), gamma = values_of(stream, layer.gamma.value),
               beta = values_of(stream, layer.beta.value);
  Tape tape(stream, Tape::Mode::Inference);
  const Var y = ops::batch_norm(tape, Var::leaf(tensor_of(stream, x, storage)), layer.gamma,
                                layer.beta, layer.state, false);
  Values expected = x;
  for (size_t i = 0; i < expected.data.size(); ++i) {
    const size_t c = i % 11;
    expected.data[i] =
        (x.data[i] - running.mean[c]) / std::sqrt(running.var[c] + double(kEps)) * gamma.data[c] +
        beta.data[c];
  }
  CHECK(difference(values_of(stream, y.value), expected,
                   storage == DType::bf16 ? 1e-2 : tolerance) == "");
  // Evaluation leaves the statistics as they are.
  check_near(values_of(stream, layer.state.mean).data, running.mean, tolerance);
  check_near(values_of(stream, layer.state.var).data, running.var, tolerance);
}

}  // namespace

TEST_CASE("batch_norm keeps running statistics, and evaluates by them", "[batch_norm][cuda]") {
  Stream cpu(poisoned_cpu());
  check_statistics(cpu, DType::f64, 1e-9);
  check_statistics(cpu, DType::f32, 1e-5);
  on_cuda_devices([](Stream& stream) {
    check_statistics(stream, DType::f32, 1e-5);
    check_statistics(stream, DType::bf16, 1e-5);
  });
}

TEST_CASE("a running variance is never negative", "[batch_norm][cuda]") {
  on_all_devices([](Stream& stream) {
    // rstd is 1/sqrt(variance + eps), or a little more by rounding.
    const Tensor moments = tensor_of(stream, {{1, 2, 2}, {0, 1.001, 0, 0.5}}, DType::f32);
    Tensor mean = Tensor::zeros(stream, {2}), var = Tensor::zeros(stream, {2});
    batch_norm_update(stream, {1.0f, 1.0f}, 2, moments, mean, var);
    CHECK(values_of(stream, var).data == std::vector<double>{0, 6});  // unbiased: 2 (4 - 1)
  });
}

TEST_CASE("a recorded step updates the running statistics each time", "[batch_norm][cuda]") {
  on_all_devices([](Stream& stream) {
    const Shape shape{2, 3, 5, 4};
    Layer issued(stream, 4, DType::f32), recorded(stream, 4, DType::f32);
    Tensor x = Tensor::empty(stream, shape);
    const Var in = Var::leaf(x);
    const auto step = [&](const Layer& layer) {
      Tape tape(stream);
      ops::batch_norm(tape, in, layer.gamma, layer.beta, layer.state, true);
    };
    Recording recording(stream);
    for (int number = 0; number < 4; ++number) {
      const std::vector<double> values = batch(number, shape).data;
      const std::vector<float> floats(values.begin(), values.end());
      x.copy_from(stream, std::as_bytes(std::span(floats)));
      step(issued);
      recording.run([&] { step(recorded); });
      CHECK(values_of(stream, recorded.state.mean).data ==
            values_of(stream, issued.state.mean).data);
      CHECK(values_of(stream, recorded.state.var).data == values_of(stream, issued.state.var).data);
    }
    CHECK(values_of(stream, issued.state.mean).data[1] > 3);  // they did move
  });
}

TEST_CASE("batch_norm shows a NaN of the batch in its statistics", "[batch_norm][cuda]") {
  on_all_devices([](Stream& stream) {
    simt::options().trap_uninitialised = false;  // comparing a NaN looks like it
    Layer layer(stream, 2, DType::f32);
    const std::vector<float> x{1, 2, NAN, 4};
    Tape tape(stream);
    ops::batch_norm(tape, Var::leaf(Tensor::from<float>(stream, {1, 2, 1, 2}, x)), layer.gamma,
                    layer.beta, layer.state, true);
    const std::vector<float> mean = layer.state.mean.to_vector<float>(stream),
                             var = layer.state.var.to_vector<float>(stream);
    CHECK(std::isnan(mean[0]));
    CHECK(std::isnan(var[0]));
    CHECK(mean[1] == Approx(0.3));
    CHECK(var[1] == Approx(0.9 + 0.1 * 2));
  });
}

TEST_CASE("an empty batch changes no running statistics", "[batch_norm][cuda]") {
  on_all_devices([](Stream& stream) {
    Layer layer(stream, 3, DType::f32);
    for (bool training : {true, false}) {
      Tape tape(stream);
      const Var y = ops::batch_norm(tape, Var::leaf(Tensor::empty(stream, {0, 4, 4, 3})),
                                    layer.gamma, layer.beta, layer.state, training);
      CHECK(y.shape() == Shape{0, 4, 4, 3});
    }
    CHECK(layer.state.mean.to_vector<float>(stream) == std::vector<float>(3, 0.0f));
    CHECK(layer.state.var.to_vector<float>(stream) == std::vector<float>(3, 1.0f));
  });
}

TEST_CASE("batch_norm refuses what does not fit", "[ops][errors]") {
  Stream stream(Device::open(DeviceType::cpu, 2));
  Layer layer(stream, 3, DType::f32);
  const auto error = [&](const Shape& x, bool training, bool wanted, Tape::Mode mode,
                         const ops::BatchNormState& state) {
    Tape tape(stream, mode);
    return message_of<Error>([&] {
      ops::batch_norm(tape, Var::leaf(Tensor::zeros(stream, x), wanted), layer.gamma, layer.beta,
                      state, training);
    });
  };
  using enum Tape::Mode;
  CHECK_THAT(error({1, 1, 1, 3}, true, false, Train, layer.state),
             Contains("x is [1,1,1,3], expected more than one value a channel in training"));
  CHECK(error({1, 1, 1, 3}, false, false, Train, layer.state) == "");
  CHECK_THAT(error({1, 2, 2, 3}, false, true, Train, layer.state),
             Contains("no gradients in evaluation"));
  CHECK(error({1, 2, 2, 3}, false, true, Inference, layer.state) == "");
  CHECK_THAT(error({2, 3}, true, false, Train, layer.state), Contains("x is [2,3]"));
  CHECK_THAT(error({1, 2, 2, 4}, true, false, Train, layer.state),
             Contains("gamma is [3] f32, expected [4] f32"));
  for (bool training : {true, false}) {
    ops::BatchNormState state = layer.state;
    state.var = Tensor::zeros(stream, {4});
    CHECK_THAT(error({1, 2, 2, 3}, training, false, Train, state),
               Contains("var is [4] f32, expected [3] f32"));
    state.var = Tensor::zeros(stream, {3}, DType::f64);
    CHECK_THAT(error({1, 2, 2, 3}, training, false, Train, state),
               Contains("var is [3] f64, expected [3] f32"));
    state.mean = {};
    CHECK_THAT(error({1, 2, 2, 3}, training, false, Train, state), Contains("mean is undefined"));
  }
}

namespace {

constexpr float kNan = NAN, kInf = INFINITY;

// The patches as the channels of one, and the gradient's pixel of each: 1 .. 4 flows there.
struct MaxCase {
  float patch[4];
  int at;
};

void check_max(Stream& stream, DType dtype, int repeats) {
  const MaxCase cases[] = {{{1, 2, 3, 4}, 3},           {{4, 3, 2, 1}, 0},
                           {{2, 2, 2, 2}, 0},           {{1, 2, 2, 1}, 1},
                           {{1, 1, 2, 2}, 2},           {{-0.0f, 0.0f, -0.0f, 0.0f}, 0},
                           {{kNan, 5, 6, 7}, 0},        {{5, 6, kNan, 7}, 2},
                           {{5, kNan, 6, kNan}, 3},     {{-kInf, -kInf, -kInf, -kInf}, 0},
                           {{-kInf, kInf, 1, kInf}, 1}, {{1, kInf, kNan, 2}, 2}};
  const int64_t kinds = int64_t(std::size(cases)), C = kinds * repeats;
  Values x{{1, 2, 2, C}, {}}, dy{{1, 1, 1, C}, {}};
  for (int p = 0; p < 4; ++p)
    for (int64_t c = 0; c < C; ++c) x.data.push_back(double(cases[c % kinds].patch[p]));
  for (int64_t c = 0; c < C; ++c) dy.data.push_back(double(1 + c));
  const Tensor in = tensor_of(stream, x, dtype);
  Tensor y = Tensor::empty(stream, dy.shape, dtype), dx = Tensor::empty(stream, x.shape, dtype);
  pool_fwd(stream, Pooling::Max, in, y);
  pool_bwd(stream, Pooling::Max, in, tensor_of(stream, dy, dtype), {dx});
  const Values largest = values_of(stream, y), gradient = values_of(stream, dx);
  for (int64_t c = 0; c < C; ++c) {
    INFO(name_of(stream.device().type()) << ' ' << name_of(dtype) << " patch " << c % kinds);
    const MaxCase& wanted = cases[c % kinds];
    const double expected = double(wanted.patch[wanted.at]), got = largest.data[size_t(c)];
    CHECK((std::isnan(expected) ? std::isnan(got) : got == expected));
    for (int p = 0; p < 4; ++p)
      CHECK(gradient.data[size_t(p * C + c)] == (p == wanted.at ? double(1 + c) : 0));
  }
}

}  // namespace

TEST_CASE("a maximum's gradient goes to the first, and NaN is above all", "[pooling][cuda]") {
  for (int repeats : {1, 4, 5}) {  // in packs and not
    Stream cpu(poisoned_cpu());
    check_max(cpu, DType::f64, repeats);
    check_max(cpu, DType::f32, repeats);
    on_cuda_devices([&](Stream& stream) {
      simt::options().trap_uninitialised = false;  // comparing a NaN looks like it
      check_max(stream, DType::f32, repeats);
      check_max(stream, DType::bf16, repeats);
    });
  }
}
