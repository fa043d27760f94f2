// The optimizer: Adam's update and the gradient's norm on every device against the f64 formula,
// clipping, decay, bf16 copies, and the latch that stops training at what is not finite.
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "autograd/parameters.h"
#include "kernels/adam.h"
#include "tests/cuda_devices.h"

using namespace tessera;

namespace {

// Packs and not, one block and several.
const std::vector<int64_t> kSizes{1, 15, 16, 17, 1000, 16384, 16385, 100003, 100004};
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

AdamTensors adam_tensors(Stream& stream, int64_t size, DType dtype) {
  AdamTensors t;
  t.norm = Tensor::empty(stream, {1}, dtype);
  t.params = tensor_of(stream, normal("p", {size}), dtype);
  t.m = Tensor::zeros(stream, {size}, dtype);
  t.v = Tensor::zeros(stream, {size}, dtype);
  return t;
}

// Parameters, moments and norm after some steps of Adam.
std::vector<Values> adam_run(Stream& stream, const AdamSpec& spec, int64_t size, DType dtype) {
  AdamTensors t = adam_tensors(stream, size, dtype);
  for (int64_t step = 1; step <= 3; ++step) {
    t.grads = tensor_of(stream, normal(concat("g", step), {size}), dtype);
    grad_norm(stream, t.grads, t.norm);
    adam_step(stream, spec, step, t);
  }
  return {values_of(stream, t.params), values_of(stream, t.m), values_of(stream, t.v),
          values_of(stream, t.norm)};
}

std::vector<AdamSpec> specs() {
  std::vector<AdamSpec> result;
  for (double decay : {0.0, 0.01})
    for (double max_norm : {0.0, 0.5, 1e6}) {
      AdamSpec spec;
      spec.lr = 0.01, spec.weight_decay = decay, spec.max_norm = max_norm;
      result.push_back(spec);
    }
  return result;
}

std::vector<double> rounded(const Values& values) {
  std::vector<double> result;
  for (double x : values.data) result.push_back(to_float(to_bf16(float(x))));
  return result;
}

}  // namespace

TEST_CASE("Adam and the gradient's norm equal the oracle", "[adam][cuda]") {
  Stream cpu(poisoned_cpu());
  for (int64_t size : kSizes)
    for (const AdamSpec& spec : specs()) {
      const auto oracle = adam_run(cpu, spec, size, DType::f64);
      std::vector<std::vector<Values>> on_simt;
      on_all_devices([&](Stream& stream) {
        INFO(name_of(stream.device().type())
             << ' ' << size << " parameters, decay " << spec.weight_decay << ", clipped at "
             << spec.max_norm);
        const auto fast = adam_run(stream, spec, size, DType::f32);
        // A parameter (number 0) may be what is left when steps of lr cancel it, and a first moment
        // (1) when gradients do: a float of some 0.05 is off by 3e-9, whatever the sum.
        for (size_t i = 0; i < fast.size(); ++i)
          CHECK(difference(fast[i], oracle[i], i <= 1 ? 1e-5 : 2e-6) == "");
        if (stream.device().type() == DeviceType::simt) on_simt.push_back(fast);
      });
      // Whatever the order of threads and blocks, the same bits.
      for (const auto& run : on_simt)
        for (size_t i = 0; i < run.size(); ++i) CHECK(run[i].data == on_simt[0][i].data);
    }
}

TEST_CASE("clipping scales the gradient to the norm that is allowed", "[adam][cuda]") {
  const auto check = [](Stream& stream, DType dtype) {
    AdamTensors t = adam_tensors(stream, 2, dtype);
    t.grads = tensor_of(stream, {{2}, {30, 40}}, dtype);
    grad_norm(stream, t.grads, t.norm);
    CHECK(values_of(stream, t.norm).data[0] == Approx(50));
    for (double max_norm : {5.0, 100.0}) {
      t.m.zero(stream);
      AdamSpec spec;
      spec.max_norm = max_norm;
      adam_step(stream, spec, 1, t);
      const double scale = max_norm == 5.0 ? 0.1 : 1.0;  // m = (1 - beta1) * clipped gradient
      CHECK(values_of(stream, t.m).data[0] == Approx(3.0 * scale));
      CHECK(values_of(stream, t.m).data[1] == Approx(4.0 * scale));
    }
  };
  Stream cpu(poisoned_cpu());
  check(cpu, DType::f64);
  on_all_devices([&](Stream& stream) { check(stream, DType::f32); });
}

TEST_CASE("the norm of many gradients", "[adam][cuda]") {
  constexpr int64_t kMany = 5000001;  // more than one round of a full grid
  const std::vector<float> ones(kMany, 1.0f);
  for (DeviceType type : {DeviceType::cpu, DeviceType::simt}) {
    Stream stream(poisoned(type));
    Tensor norm = Tensor::empty(stream, {1});
    grad_norm(stream, Tensor::from<float>(stream, {kMany}, ones), norm);
    CHECK(norm.to_vector<float>(stream)[0] == float(std::sqrt(double(kMany))));
  }
}

TEST_CASE("no gradients have no norm, and huge ones an infinite one", "[adam][cuda]") {
  on_all_devices([](Stream& stream) {
    Tensor norm = Tensor::empty(stream, {1});
    grad_norm(stream, Tensor::empty(stream, {0}), norm);
    CHECK(norm.to_vector<float>(stream)[0] == 0);
    grad_norm(stream, Tensor::from<float>(stream, {2}, std::vector<float>{1e38f, 1e38f}), norm);
    CHECK(norm.to_vector<float>(stream)[0] == Approx(std::sqrt(2.0) * 1e38));
    grad_norm(stream, Tensor::from<float>(stream, {2}, std::vector<float>{3e38f, 3e38f}), norm);
    CHECK(norm.to_vector<float>(stream)[0] == kInf);
  });
}

TEST_CASE("bf16 copies are the updated parameters, rounded", "[adam][cuda]") {
  on_all_devices([](Stream& stream) {
    for (int64_t size : kSizes) {
      INFO(name_of(stream.device().type()) << ' ' << size);
      AdamTensors t = adam_tensors(stream, size, DType::f32);
      t.copies = Tensor::empty(stream, {size}, DType::bf16);
      copy_rounded(stream, t.params, t.copies);
      CHECK(values_of(stream, t.copies).data == rounded(normal("p", {size})));
      t.grads = tensor_of(stream, normal("g1", {size}), DType::f32);
      AdamSpec spec;
      spec.lr = 0.1;
      adam_step(stream, spec, 1, t);
      CHECK(values_of(stream, t.copies).data == rounded(values_of(stream, t.params)));
    }
    Tensor none = Tensor::empty(stream, {0}, DType::bf16);
    copy_rounded(stream, Tensor::empty(stream, {0}), none);
  });
}

namespace {

// What an update may change, as bits that can be compared.
std::vector<Values> state_of(Stream& stream, const AdamTensors& t) {
  return {values_of(stream, t.params), values_of(stream, t.m), values_of(stream, t.v),
          values_of(stream, t.copies)};
}

bool equal(const std::vector<Values>& a, const std::vector<Values>& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i].data != b[i].data) return false;
  return true;
}

// Five steps, of which the third has a bad gradient or a bad loss: it and all later ones must
// change nothing.
void check_latch(Stream& stream, DType dtype, int64_t size, double bad_grad, double bad_loss,
                 double max_norm) {
  INFO(name_of(stream.device().type())
       << ' ' << name_of(dtype) << ' ' << size << " gradient " << bad_grad << " loss " << bad_loss
       << " max_norm " << max_norm);
  AdamSpec spec;
  spec.lr = 0.01, spec.max_norm = max_norm;
  AdamTensors t = adam_tensors(stream, size, dtype), free = adam_tensors(stream, size, dtype);
  t.copies = Tensor::empty(stream, {size}, DType::bf16);
  free.copies = Tensor::empty(stream, {size}, DType::bf16);
  t.latch = Tensor::zeros(stream, {1}, DType::i64);
  std::vector<Values> before;
  for (int64_t step = 1; step <= 5; ++step) {
    INFO("step " << step);
    Values g = normal(concat("g", step), {size});
    if (step == 3) g.data[size_t(size / 2)] = bad_grad;
    t.grads = tensor_of(stream, g, dtype);
    t.loss = tensor_of(stream, {{1}, {step == 3 ? bad_loss : 0.5}}, dtype);
    grad_norm(stream, t.grads, t.norm);
    adam_step(stream, spec, step, t);
    const std::vector<Values> after = state_of(stream, t);
    CHECK(t.latch.to_vector<int64_t>(stream)[0] == (step < 3 ? 0 : 3));
    if (step < 3) {  // the latch changes nothing
      free.grads = t.grads, free.norm = t.norm;
      adam_step(stream, spec, step, free);
      CHECK(equal(state_of(stream, free), after));
      CHECK((before.empty() || !equal(before, after)));
      before = after;
    } else {
      CHECK(equal(before, after));
    }
  }
}

}  // namespace

TEST_CASE("what is not finite stops this and later updates", "[adam][cuda]") {
  for (double max_norm : {0.0, 1.0})
    for (int64_t size : {1, 17, 5000}) {
      const auto check = [&](Stream& stream, DType dtype) {
        check_latch(stream, dtype, size, kNan, 0.5, max_norm);
        check_latch(stream, dtype, size, -kInf, 0.5, max_norm);
        check_latch(stream, dtype, size, 1, kNan, max_norm);
        check_latch(stream, dtype, size, kNan, kInf, max_norm);
      };
      Stream cpu(poisoned_cpu());
      check(cpu, DType::f64);
      on_all_devices([&](Stream& stream) { check(stream, DType::f32); });
    }
}

TEST_CASE("the latch is set where there is nothing to update", "[adam][cuda]") {
  on_all_devices([](Stream& stream) {
    AdamTensors t = adam_tensors(stream, 0, DType::f32);
    t.grads = Tensor::empty(stream, {0});
    t.latch = Tensor::zeros(stream, {1}, DType::i64);
    t.loss = Tensor::from<float>(stream, {1}, std::vector<float>{kNan});
    grad_norm(stream, t.grads, t.norm);
    adam_step(stream, {}, 7, t);
    CHECK(t.latch.to_vector<int64_t>(stream)[0] == 7);
  });
}

TEST_CASE("without a latch and a bound what is not finite goes on", "[adam][cuda]") {
  on_all_devices([](Stream& stream) {
    AdamTensors t = adam_tensors(stream, 5, DType::f32);
    t.grads = Tensor::from<float>(stream, {5}, std::vector<float>{1, kNan, 1, 1, 1});
    t.norm = {};
    adam_step(stream, {}, 1, t);
    CHECK(find_non_finite(stream, t.params) == 1);
  });
}

TEST_CASE("the optimizer's latch tells the step when it is polled", "[adam][cuda]") {
  on_all_devices([](Stream& stream) {
    Parameters parameters;
    parameters.add("w", {3, 5}, {0.5f, 0}, FileLayout::Same);
    parameters.allocate(stream, Precision::bf16(), 1);
    parameters.prepare_training(stream);
    AdamSpec spec;
    spec.max_norm = 0.1;
    Adam adam(stream, parameters, spec);
    const Tensor loss = Tensor::from<float>(stream, {1}, std::vector<float>{0.5f});
    const auto set_gradients = [&](float value) {
      const std::vector<float> values(size_t(parameters.grads.numel()), value);
      parameters.grads.copy_from(stream, std::as_bytes(std::span(values)));
    };

    set_gradients(3);
    adam.update(loss);
    CHECK(adam.poll() == 0);
    const Values values = values_of(stream, parameters.values);
    CHECK(values_of(stream, parameters.copies).data == rounded(values));
    // Clipped by the norm of these gradients: 12 = sqrt(16) * 3, with the padding.
    CHECK(values_of(stream, parameters.m).data[0] == Approx(0.1 * 3 * 0.1 / 12));

    set_gradients(kNan);
    adam.update(loss);
    set_gradients(3);
    adam.update();
    CHECK(adam.poll() == 2);
    CHECK(adam.step == 3);
    CHECK(values_of(stream, parameters.values).data == values.data);
  });
}

TEST_CASE("the turned forms of a filter follow its values", "[adam][cuda]") {
  on_all_devices([](Stream& stream) {
    Parameters parameters;
    const auto add = [&](const char* name, const Shape& shape, int64_t upsampled = 0) {
      return &parameters.add(name, shape, {0.5f, 0}, FileLayout::Filter, upsampled);
    };
    const Parameter *plain = add("plain", {16, 3, 3, 8}), *up = add("up", {8, 3, 3, 24}, 16),
                    *odd = add("odd", {8, 3, 3, 12}), *one = add("one", {16, 1, 1, 8});
    parameters.allocate(stream, Precision::bf16(), 1);
    CHECK(!plain->var.forms.turned);  // nobody asks for a gradient yet
    parameters.prepare_training(stream);
    const bool kept =
        stream.device().type() != DeviceType::cpu && stream.device().info().capability >= 80;
    for (const Parameter* p : {odd, one}) CHECK(!p->var.forms.turned);
    CHECK(bool(plain->var.forms.turned) == kept);
    CHECK(bool(up->var.forms.turned_phases) == kept);
    if (!kept) return;

    const auto check = [&] {
      const auto turned = [&](const Tensor& from, const Tensor& like) {
        const Tensor to = Tensor::empty(stream, like.shape(), DType::bf16);
        turn_filters(stream, std::vector<TurnedFilter>{{from, to}});
        return values_of(stream, to).data;
      };
      for (const Parameter* p : {plain, up})
        CHECK(values_of(stream, p->var.forms.turned).data ==
              turned(p->var.value, p->var.forms.turned));
      CHECK(up->var.forms.turned.shape() == Shape{8, 3, 3, 8});
      CHECK(values_of(stream, up->var.forms.turned_phases).data ==
            turned(up->var.forms.phases, up->var.forms.turned_phases));
    };
    check();
    const auto drawn = values_of(stream, plain->var.forms.turned).data;
    fill(stream, parameters.grads, 1);
    Adam adam(stream, parameters, {0.1});
    adam.update();
    check();
    CHECK(values_of(stream, plain->var.forms.turned).data != drawn);
    fill(stream, parameters.values, 0.5);  // as a checkpoint does
    parameters.refresh_copies(stream);
    check();
  });
}

TEST_CASE("the phases of a filter over an upsampled image follow its values", "[adam][cuda]") {
  on_all_devices([](Stream& stream) {
    Parameters parameters;
    const Parameter& w =
        parameters.add("w", {4, 3, 3, 5}, {0.5f, 0}, FileLayout::Filter, /*upsampled=*/3);
    parameters.allocate(stream, Precision::bf16(), 1);
    const auto expected = [&] {
      Tensor phases = Tensor::empty(stream, {4, 4, 4, 3}, DType::bf16);
      upcat_phases(stream, std::vector<PhasedFilter>{{w.master, phases}});
      return values_of(stream, phases).data;
    };
    const auto drawn = expected();
    CHECK(values_of(stream, w.var.forms.phases).data == drawn);

    parameters.prepare_training(stream);
    fill(stream, parameters.grads, 1);
    Adam adam(stream, parameters, {0.1});
    adam.update();
    CHECK(values_of(stream, w.var.forms.phases).data == expected());
    CHECK(values_of(stream, w.var.forms.phases).data != drawn);

    // As a step that is recorded does it.
    const Tensor now = Tensor::from<int64_t>(stream, {1}, std::vector<int64_t>{2}),
                 factors = Tensor::from<float>(stream, {8}, adam_factors(adam.spec(), 2));
    const auto second = expected();
    adam.issue({}, now, factors);
    CHECK(values_of(stream, w.var.forms.phases).data == expected());
    CHECK(values_of(stream, w.var.forms.phases).data != second);

    // Where no kernel reads them there are none.
    Parameters full;
    const Parameter& same = full.add("w", {4, 3, 3, 5}, {0.5f, 0}, FileLayout::Filter, 3);
    full.allocate(stream, Precision::f32(), 1);
    CHECK(!same.var.forms.phases);
  });
}

TEST_CASE(
    "the latch keeps the first step, by the number on the device, and the norm is never nothing",
    "[adam]") {
  Stream stream(Device::open(DeviceType::cpu, 1));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto one = [&](float x) { return Tensor::from<float>(stream, {1}, std::vector<float>{x}); };
  AdamTensors t;
  t.params = one(0.5f), t.m = one(0), t.v = one(0), t.norm = one(0);
  t.latch = Tensor::zeros(stream, {1}, DType::i64);
  const auto latch = [&] { return t.latch.to_vector<int64_t>(stream)[0]; };
  const AdamSpec spec;
  for (int64_t now : {7, 8}) {
    t.grads = one(nan);
    t.now = Tensor::from<int64_t>(stream, {1}, std::vector<int64_t>{now});
    t.factors = Tensor::from<float>(stream, {8}, adam_factors(spec, now));
    grad_norm(stream, t.grads, t.norm);
    adam_step(stream, spec, 1, t);
    CHECK(latch() == 7);
  }
  AdamSpec clipped;
  clipped.max_norm = 1e-6;
  AdamTensors u;
  u.grads = one(1e-6f), u.params = one(0), u.m = one(0), u.v = one(0), u.norm = one(0);
  grad_norm(stream, u.grads, u.norm);
  adam_step(stream, clipped, 1, u);
  CHECK(u.m.to_vector<float>(stream)[0] == Approx(0.1 * 0.5e-6));
}
