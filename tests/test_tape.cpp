// The tape: what it accumulates, skips, frees and watches.
#include <algorithm>
#include <catch2/catch.hpp>
#include <limits>

#include "autograd/ops.h"
#include "autograd/parameters.h"
#include "autograd/residual_block.h"
#include "core/simt/trace.h"
#include "tests/cuda_devices.h"
#include "tests/op_runner.h"
#include "tests/temp_dir.h"

using namespace tessera;
using Floats = std::vector<float>;

namespace {

Var leaf(Stream& stream, const Shape& shape, const Floats& values, std::string name = "") {
  return Var::leaf(Tensor::from<float>(stream, shape, values), true, std::move(name));
}

Floats grad_of(Stream& stream, const Var& x) { return x.grad().to_vector<float>(stream); }

}  // namespace

TEST_CASE("a value that is used twice gets the sum of its gradients", "[tape]") {
  Stream stream(poisoned_cpu());
  Tape tape(stream);
  const Var x = leaf(stream, {3}, {1, 2, 3});
  const Var twice = ops::add(tape, x, x);
  const Var y = ops::add(tape, twice, x);  // 3x
  tape.backward_from(y, Tensor::from<float>(stream, {3}, Floats{1, 10, 100}));
  CHECK(grad_of(stream, x) == Floats{3, 30, 300});
}

TEST_CASE("both parts of a join may be the same value", "[tape]") {
  Stream stream(poisoned_cpu());
  Tape tape(stream);
  const Var x = leaf(stream, {1, 1, 1, 2}, {1, 2});
  const Var y = ops::concat_channels(tape, x, x);
  CHECK(y.value.to_vector<float>(stream) == Floats{1, 2, 1, 2});
  tape.backward_from(y, Tensor::from<float>(stream, {1, 1, 1, 4}, Floats{1, 2, 30, 40}));
  CHECK(grad_of(stream, x) == Floats{31, 42});
}

TEST_CASE("a skip connection collects from both of its ways", "[tape]") {
  Stream stream(poisoned_cpu());
  Tape tape(stream);
  const Var x = leaf(stream, {1, 2, 2, 1}, {1, 2, 3, 4});
  const Var skip = ops::add(tape, x, x);
  const Var low = ops::space_to_channel(tape, skip);  // [1,1,1,4]
  const Var y = ops::concat_upsample(tape, low, skip);
  tape.backward_from(y, Tensor::from<float>(stream, {1, 2, 2, 5}, Floats(20, 1)));
  CHECK(grad_of(stream, x) == Floats(4, 2 * (4 + 1)));  // four upsampled copies and the skip
}

TEST_CASE("values that nothing uses are skipped", "[tape]") {
  Stream stream(poisoned_cpu());
  Tape tape(stream);
  const Var x = leaf(stream, {2}, {1, 2}), other = leaf(stream, {2}, {5, 6});
  ops::activation(tape, Activation::Gelu, x);
  ops::add(tape, x, other);
  const Var y = ops::add(tape, x, x);
  tape.backward_from(y, Tensor::from<float>(stream, {2}, Floats{1, 1}));
  CHECK(grad_of(stream, x) == Floats{2, 2});
  CHECK(!other.slot->written);
  CHECK_THROWS_AS(other.grad(), Error);
}

TEST_CASE("data gets no gradient", "[tape]") {
  Stream stream(poisoned_cpu());
  Tape tape(stream);
  const Var x = leaf(stream, {2}, {1, 2});
  const Var data = Var::leaf(Tensor::from<float>(stream, {2}, Floats{3, 4}));
  const Var derived = ops::add(tape, data, data);
  CHECK(!derived.wanted());
  const Var y = ops::add(tape, x, derived);
  CHECK(y.wanted());
  tape.backward_from(y, Tensor::from<float>(stream, {2}, Floats{1, 2}));
  CHECK(grad_of(stream, x) == Floats{1, 2});
  CHECK(!data.slot->grad);
  CHECK(!derived.slot->grad);
}

TEST_CASE("backward begins with a gradient of one", "[tape]") {
  Stream stream(poisoned_cpu());
  Tape tape(stream);
  const Var x = leaf(stream, {2}, {3, 5});
  const Var loss = ops::mse(tape, x, Tensor::zeros(stream, {2}));
  CHECK(loss.value.to_vector<float>(stream) == Floats{17});
  tape.backward(loss);
  CHECK(grad_of(stream, x) == Floats{3, 5});
}

TEST_CASE("backward begins with a value that is on the tape", "[tape]") {
  Stream stream(poisoned_cpu());
  const auto square = [&](Tape& tape, const Var& x) {
    return ops::mse(tape, x, Tensor::zeros(stream, x.shape()));
  };
  const auto refused = [&](Tape& tape, const Var& y) {
    return message_of<Error>([&] { tape.backward(y); }).find("which is not on this tape") !=
           std::string::npos;
  };
  const Var x = leaf(stream, {1}, {3}), other = leaf(stream, {1}, {5});
  Tape tape(stream), second(stream);
  const Var loss = square(tape, x), same_tape = square(tape, other), elsewhere = square(second, x);
  CHECK(refused(tape, elsewhere));
  CHECK(!x.slot->written);
  tape.backward(loss);
  CHECK(refused(tape, loss));       // again
  CHECK(refused(tape, same_tape));  // its way back went with the first one's
  CHECK(grad_of(stream, x) == Floats{6});
  CHECK(message_of<Error>([&] { square(tape, loss); }).find("the way back of 'mse' is done") !=
        std::string::npos);
  tape.backward(other);  // a value that no op made
  CHECK(grad_of(stream, other) == Floats{1});
  const Var one = leaf(stream, {1, 1, 1, 1}, {3});
  tape.backward(square(tape, one));
  CHECK(grad_of(stream, one) == Floats{6});
}

TEST_CASE("after an error on the way back the tape is empty", "[tape]") {
  Stream stream(poisoned_cpu());
  Tape tape(stream);
  const auto passed_on = [&](const Var& x, bool broken) {
    Var y = tape.output(x.shape(), x.value.dtype(), {&x});
    add_bwd(stream, x.value, {y.value});
    tape.record("passed_on", {&x}, y, [x = x.slot, broken](Stream& s, const Tensor& dy) {
      if (broken) throw Error("broken");
      add_bwd(s, dy, x->out(s));
    });
    return y;
  };
  const Var x = leaf(stream, {1}, {3}), z = leaf(stream, {1}, {5});
  CHECK_THROWS_AS(tape.backward(passed_on(passed_on(x, false), true)), Error);
  tape.backward(passed_on(z, false));
  CHECK(grad_of(stream, z) == Floats{1});
  CHECK(!x.slot->written);
}

TEST_CASE("gradients of two passes add up until they are cleared", "[tape]") {
  Stream stream(poisoned_cpu());
  Parameters parameters;
  const Parameter& w = parameters.add("w", {2, 2}, {0.0f, 1.0f}, FileLayout::Same);
  Parameter& idle = parameters.add("idle", {3}, {0.0f, 1.0f}, FileLayout::Same);
  parameters.allocate(stream, Precision::f32(), 0);
  parameters.prepare_training(stream);
  const auto pass = [&](float x0, float x1) {
    Tape tape(stream);
    const Var x = Var::leaf(Tensor::from<float>(stream, {1, 2}, Floats{x0, x1}));
    const Var y = ops::linear(tape, x, w.var, {});
    tape.backward_from(y, Tensor::from<float>(stream, {1, 2}, Floats{1, 10}));
  };
  parameters.clear_gradients();
  pass(1, 2);
  CHECK(grad_of(stream, w.var) == Floats{1, 2, 10, 20});
  pass(3, 4);
  CHECK(grad_of(stream, w.var) == Floats{4, 6, 40, 60});
  parameters.clear_gradients();
  pass(5, 6);
  CHECK(grad_of(stream, w.var) == Floats{5, 6, 50, 60});
  // What no pass has written is zero, not what an earlier step left.
  std::fill_n(idle.var.slot->grad.data<float>(), 3, 7.0f);
  parameters.finish_gradients(stream);
  CHECK(idle.var.slot->grad.to_vector<float>(stream) == Floats{0, 0, 0});
  CHECK(grad_of(stream, w.var) == Floats{5, 6, 50, 60});
}

TEST_CASE("backward leaves a gradient alone that somebody else holds", "[tape]") {
  Stream stream(poisoned_cpu());
  const Tensor dy = Tensor::from<float>(stream, {2}, Floats{1, 2});
  const Var x = leaf(stream, {2}, {3, 4});
  Tape tape(stream);
  tape.backward_from(x, dy);
  tape.backward_from(x, dy);  // adds to what is there
  CHECK(grad_of(stream, x) == Floats{2, 4});
  CHECK(dy.to_vector<float>(stream) == Floats{1, 2});
}

TEST_CASE("inference records nothing and frees values as they fall out of use", "[tape]") {
  Stream stream(poisoned_cpu());
  const Pool& pool = *stream.device().pool();
  const Shape shape{1, 16, 16, 8};  // 8 KiB
  const size_t bytes = 8192;
  const auto chain = [&](Tape& tape, const Var& x) {
    Var h = x;
    for (int i = 0; i < 10; ++i) h = ops::activation(tape, Activation::Gelu, h);
    return h;
  };
  const Var x = leaf(stream, shape, Floats(2048, 1));
  CHECK(pool.bytes_in_use() == bytes);
  {
    Tape tape(stream, Tape::Mode::Inference);
    CHECK(!tape.recording());
    const Var y = chain(tape, x);
    CHECK(!y.wanted());
    CHECK(pool.bytes_in_use() == 2 * bytes);
    CHECK(pool.peak_bytes() == 3 * bytes);  // x, and the input and output of one op
    CHECK_THROWS_AS(tape.backward_from(y, y.value), Error);
  }
  CHECK(pool.bytes_in_use() == bytes);
  Tape tape(stream);
  const Var y = chain(tape, x);
  CHECK(pool.bytes_in_use() == 11 * bytes);  // every input is needed on the way back
}

TEST_CASE("backward frees as it goes", "[tape]") {
  Stream stream(poisoned_cpu());
  const Pool& pool = *stream.device().pool();
  const Shape shape{1, 16, 16, 8};
  const size_t bytes = 8192;
  const Var x = leaf(stream, shape, Floats(2048, 1));
  Tape tape(stream);
  std::vector<size_t> in_use;
  // An op that does nothing but to note how much memory is held when backward comes by.
  const auto probe = [&](const Var& in) {
    Var y = tape.output(in.shape(), DType::f32, {&in});
    std::copy_n(in.value.data<float>(), in.value.numel(), y.value.data<float>());
    tape.record("probe", {&in}, y, [&, slot = in.slot](Stream& s, const Tensor& dy) {
      in_use.push_back(pool.bytes_in_use());
      add_bwd(s, dy, slot->out(s));
    });
    return y;
  };
  {
    Var h = x;
    for (int i = 0; i < 4; ++i) h = probe(ops::activation(tape, Activation::Gelu, h));
    tape.backward_from(h, Tensor::from<float>(stream, shape, Floats(2048, 1)));
  }
  // Held all the time: x, the result and its gradient. The inputs of the three other ops go one by
  // one; from the second probe on there is the gradient on its way.
  CHECK(in_use == std::vector<size_t>{6 * bytes, 6 * bytes, 5 * bytes, 4 * bytes});
  CHECK(pool.bytes_in_use() == 2 * bytes);  // x and its gradient
}

TEST_CASE("an op adopts the gradient of an output that nobody holds", "[tape]") {
  Stream stream(poisoned_cpu());
  const Floats up{1, 10, 100};
  for (const bool held : {false, true})
    for (const bool used_before : {false, true}) {
      INFO("output held: " << held << ", input used before: " << used_before);
      Tape tape(stream);
      const Var x = leaf(stream, {3}, {1, 2, 3});
      bool adopted = false;
      // y = 2x, of which dx = dy + dy, as a block adds its input to what it makes of it.
      Var y = tape.output({3}, DType::f32, {&x});
      add_fwd(stream, x.value, x.value, y.value);
      tape.record("twice", {&x}, y, [&, slot = x.slot](Stream& s, Tensor dy) {
        const Tensor copy = Tensor::from<float>(s, {3}, dy.to_vector<float>(s));
        adopted = slot->adopt(dy);
        if (!adopted) add_bwd(s, dy, slot->out(s));
        add_bwd(s, copy, slot->out(s));
      });
      Var z = ops::activation(tape, Activation::Relu, y);
      if (used_before) z = ops::add(tape, z, x);
      const Var kept = held ? y : Var{};
      y = {};
      tape.backward_from(z, Tensor::from<float>(stream, {3}, up));
      CHECK(adopted == (!held && !used_before));
      CHECK(grad_of(stream, x) == (used_before ? Floats{3, 30, 300} : Floats{2, 20, 200}));
      if (held) CHECK(grad_of(stream, kept) == up);
    }
}

TEST_CASE("a block's gradient is the same in the memory of another", "[tape][cuda]") {
  size_t launches = 0;  // on the host model
  const auto gradients = [&](Stream& stream, DType storage, bool held) {
    const auto var = [&](const char* name, const Shape& shape, DType dtype, float scale) {
      return Var::leaf(tensor_of(stream, normal(name, shape, scale), dtype), true);
    };
    const Shape image{2, 6, 6, 8}, filter{8, 3, 3, 8}, vector{8};
    const auto numbers = [&](const char* name) { return var(name, vector, DType::f32, 1); };
    const auto product = [&](const char* name, const Shape& shape) {
      const Var w = var(name, shape, storage, 0.2f);
      w.slot->dtype = DType::f32;
      return w;
    };
    const Var x = var("x", image, storage, 1), t = var("t", {2, 8}, storage, 1);
    const ops::ResidualBlockArgs args{{{2}},
                                      product("w1", filter),
                                      numbers("b1"),
                                      numbers("g1"),
                                      numbers("c1"),
                                      product("w2", filter),
                                      numbers("b2"),
                                      numbers("g2"),
                                      numbers("c2"),
                                      {},
                                      {}};
    Tape tape(stream);
    const simt::LaunchTrace trace;
    Var y = ops::residual_block(tape, ops::Fusion::On, x, {}, t, args);
    const Var z = ops::activation(tape, Activation::Gelu, y), kept = held ? y : Var{};
    y = {};
    tape.backward_from(z, tensor_of(stream, normal("dz", image), storage));
    stream.synchronize();
    launches = trace.launches.size();
    return values_of(stream, x.grad());
  };
  on_all_devices([&](Stream& stream) {
    for (const DType storage : {DType::f32, DType::bf16}) {
      INFO(name_of(stream.device().type()) << ' ' << name_of(storage));
      const Values own = gradients(stream, storage, true);
      const size_t before = launches;
      const Values shared = gradients(stream, storage, false);
      // An addition of its own is needed only where the output's gradient has to stay.
      if (stream.device().type() == DeviceType::simt) CHECK(launches + 1 == before);
      // Held, the sum of both is rounded twice in bf16.
      CHECK(difference(shared, own, storage == DType::bf16 ? 1e-2 : 1e-6) == "");
    }
  });
}

TEST_CASE("a watching tape names the first value that is not finite", "[tape]") {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  Stream stream(poisoned_cpu());
  Tape tape(stream);
  tape.watch();
  const auto first = [&](auto&& call) -> std::string {
    try {
      call();
    } catch (const NonFiniteError& error) {
      CHECK(std::string(error.what()).find("'" + error.tensor + "' [") == 0);
      return error.tensor;
    }
    return "";
  };
  const Var good = leaf(stream, {2}, {1, 2}), huge = leaf(stream, {2}, {1, 3e38f});
  const Var bad = leaf(stream, {2}, {kInf, 1}, "conv.weight");
  CHECK(first([&] { ops::add(tape, good, good); }) == "");
  CHECK(first([&] { ops::add(tape, good, bad); }) == "conv.weight");
  Tape::Scope outer(tape, "down1");
  CHECK(first([&] {
          const Var sum = ops::add(tape, huge, good);  // still finite
          Tape::Scope inner(tape, "down1.block");
          ops::activation(tape, Activation::Gelu, ops::add(tape, sum, huge));
        }) == "down1.block.add");
  CHECK(first([&] { ops::add(tape, huge, huge); }) == "down1.add");
}

TEST_CASE("a watching tape names the first gradient that is not finite", "[tape]") {
  Stream stream(poisoned_cpu());
  for (bool watch : {false, true}) {
    Tape tape(stream);
    if (watch) tape.watch();
    const Var x = leaf(stream, {2}, {1, 2}, "x"), w = leaf(stream, {2}, {1, 1}, "w");
    const Var sum = ops::add(tape, x, w);
    const Var y = ops::activation(tape, Activation::Gelu, sum);
    const Var z = ops::add(tape, y, y);
    const auto backward = [&] {
      tape.backward_from(z, Tensor::from<float>(stream, {2}, Floats{3e38f, 1}));
    };
    if (!watch) {
      CHECK_NOTHROW(backward());
      continue;
    }
    std::string named;
    try {
      backward();
    } catch (const NonFiniteError& error) {
      named = error.tensor;
    }
    CHECK(named == "gradient of gelu");
  }
}

TEST_CASE("two parameters of one name are refused", "[tape]") {
  Parameters parameters;
  parameters.add("w", {3}, {}, FileLayout::Same);
  CHECK_THAT(message_of<Error>([&] { parameters.add("w", {4}, {}, FileLayout::Same); }),
             Catch::Contains("two parameters are called 'w'"));
}

TEST_CASE("what an average pool was given is free after it", "[tape]") {
  Stream stream(Device::open(DeviceType::cpu, 1));
  const Pool& pool = *stream.device().pool();
  const Var w = Var::leaf(Tensor::zeros(stream, {1, 16, 16, 16}), true);
  Tape tape(stream);
  const size_t before = pool.bytes_in_use();
  const Var y = ops::pool(tape, Pooling::Average, ops::add(tape, w, w));
  CHECK(pool.bytes_in_use() - before == 4096);
}
