// Work beside a stream's: in which order, in which memory, and what autograd makes of it.
#include "core/branch.h"

#include <catch2/catch.hpp>
#include <limits>
#include <optional>
#include <set>

#include "autograd/ops.h"
#include "autograd/residual_block.h"
#include "core/recording.h"
#include "core/simt/runtime.h"
#include "tests/cuda_devices.h"
#include "tests/op_runner.h"
#include "tests/recorded_work.h"

using namespace tessera;

namespace {

Tensor filled(Stream& stream, float value) {
  Tensor x = Tensor::empty(stream, {kSize});
  fill(stream, x, value);
  return x;
}

// 4 x and 16 x, the second one beside what the stream does meanwhile, whose memory may be that of
// tensors that it has given up.
std::pair<Tensor, Tensor> products(Stream& stream, float x) {
  Tensor four = Tensor::empty(stream, {kSize}), sixteen = Tensor::empty(stream, {kSize});
  {
    Tensor input = filled(stream, x);
    quadruple(stream, input, four);
    Tensor copy = Tensor::empty(stream, {kSize});
    add_fwd(stream, four, filled(stream, 0), copy);
    beside(stream, [copy, sixteen](Stream& s) mutable { quadruple(s, copy, sixteen); });
  }
  for (int i = 0; i < 6; ++i) filled(stream, -7);
  join(stream);
  return {four, sixteen};
}

// x + t, where t = gelu(gelu(a) w^T) is computed beside what else there is. t and what it is made
// of have the memory of `filled`.
Var sum_with_branch(Tape& tape, const Var& x, const Var& a, const Var& w, bool in_branch) {
  Stream& stream = tape.stream();
  Var t;
  {
    const auto work = [&, b = ops::activation(tape, Activation::Gelu, a)] {
      t = ops::activation(tape, Activation::Gelu, ops::linear(tape, b, w, {}));
    };
    in_branch ? tape.beside(work) : work();
  }
  for (int i = 0; i < 6; ++i) filled(stream, -7);
  join(stream);
  return ops::add_broadcast(tape, x, t);
}

}  // namespace

TEST_CASE("work beside a stream has its memory until it is joined", "[branch][cuda][small]") {
  on_all_devices([](Stream& stream) {
    for (float x : {1.0f, 2.0f, 3.0f}) {
      const auto [four, sixteen] = products(stream, x);
      for (int i = 0; i < 6; ++i) filled(stream, -7);
      CHECK(four.to_vector<float>(stream) == all(4 * x));
      CHECK(sixteen.to_vector<float>(stream) == all(16 * x));
    }
    const size_t in_use = stream.device().pool()->bytes_in_use();
    products(stream, 1);
    CHECK(stream.device().pool()->bytes_in_use() == in_use);
  });
}

TEST_CASE("work beside a stream uses again what it gave back", "[branch][cuda]") {
  on_cuda_devices([](Stream& stream) {
    if (!has_branches(stream)) return;
    const Pool& pool = *stream.device().pool();
    const size_t before = pool.bytes_in_use();
    beside(stream, [](Stream& s) {
      for (int i = 0; i < 3; ++i) filled(s, 1);
    });
    CHECK(pool.bytes_in_use() - before == 4096);
    join(stream);
    CHECK(pool.bytes_in_use() == before);
  });
}

TEST_CASE("recorded work beside a stream may ask for any sizes", "[branch][recording][cuda]") {
  on_cuda_devices([](Stream& stream) {
    Recording recording(stream);
    Tensor sum = Tensor::empty(stream, {1010});
    for (int i = 0; i < 3; ++i) {
      fill(stream, sum, 0);
      recording.run([&] {
        beside(stream, [sum](Stream& s) mutable {
          for (const int64_t size : {1000, 1010, 990}) {  // a pool's blocks are 1024 floats
            Tensor x = Tensor::empty(s, {size});
            fill(s, x, 1);
            Tensor part = sum.slice(0, {size});
            add_fwd(s, part, x, part);
          }
        });
      });
      std::vector<float> expected(1010, 1.0f);
      std::fill_n(expected.begin(), 1000, 2.0f), std::fill_n(expected.begin(), 990, 3.0f);
      CHECK(sum.to_vector<float>(stream) == expected);
    }
  });
}

TEST_CASE("recorded work has branches", "[branch][recording][cuda][small]") {
  on_all_devices([](Stream& stream) {
    Tensor x = filled(stream, 1), y = Tensor::empty(stream, {kSize});
    Recording recording(stream);
    for (float value : {1.0f, 2.0f, 3.0f, 4.0f}) {
      fill(stream, x, value);
      recording.run([&] {
        Tensor z = Tensor::empty(stream, {kSize});
        {
          Tensor copy = Tensor::empty(stream, {kSize});
          add_fwd(stream, x, x, copy);
          beside(stream, [copy, z](Stream& s) mutable { quadruple(s, copy, z); });
        }
        for (int i = 0; i < 6; ++i) filled(stream, -7);
        join(stream);
        add_fwd(stream, z, x, y);
      });
      CHECK(y.to_vector<float>(stream) == all(9 * value));
    }
  });
}

TEST_CASE("a recording that fails in work beside the stream can be done again",
          "[branch][recording][cuda]") {
  on_cuda_devices([](Stream& stream) {
    Tensor x = filled(stream, 1), y = Tensor::empty(stream, {kSize});
    Recording recording(stream);
    int calls = 0;
    const auto work = [&] {
      const bool fails = ++calls == 2;
      beside(stream, [=, &x](Stream& s) mutable {
        quadruple(s, x, y);
        ENSURE(!fails, "no");
      });
      join(stream);
    };
    recording.run(work);
    CHECK_THROWS_AS(recording.run(work), Error);
    for (float value : {2.0f, 3.0f}) {
      fill(stream, x, value);
      recording.run(work);
      CHECK(y.to_vector<float>(stream) == all(4 * value));
    }
  });
}

// Which of three steps comes when: before the fork, beside, and behind it.
TEST_CASE("work beside a stream runs before or after what comes next", "[branch][simt]") {
  const simt::ScopedOptions restore(simt::options());
  simt::options().order = simt::Order::Random;
  std::set<std::string> seen;
  for (const bool recorded : {false, true})
    for (uint64_t seed = 1; seed < 20; ++seed) {
      simt::options().landing = seed % 2 ? simt::Landing::Latest : simt::Landing::Random;
      simt::options().seed = seed;
      Stream stream(poisoned(DeviceType::simt));
      std::string log;
      struct Note {
        std::string& log;
        char name;
      } notes[] = {{log, '1'}, {log, 'b'}, {log, '2'}, {log, '3'}};
      const auto note = [](Stream& s, Note& n) {
        const auto add = [](void* data) {
          static_cast<Note*>(data)->log += static_cast<Note*>(data)->name;
        };
        const auto native = simt::cudaStream_t(s.native());
        REQUIRE(simt::cudaLaunchHostFunc(native, add, &n) == simt::cudaSuccess);
      };
      const auto work = [&] {
        note(stream, notes[0]);
        beside(stream, [&](Stream& s) { note(s, notes[1]); });
        note(stream, notes[2]);
        join(stream);
        note(stream, notes[3]);
      };
      Recording recording(stream);
      for (int i = 0; i < (recorded ? 2 : 1); ++i) {
        log.clear();
        recorded ? recording.run(work) : work();
        stream.synchronize();
      }
      CHECK((log == "1b23" || log == "12b3"));
      seen.insert((recorded ? "recorded " : "") + log);
    }
  Stream stream(Device::open(DeviceType::simt));
  CHECK(seen.size() == (has_branches(stream) ? 4 : 2));
}

// The gradient of a filter that three convolutions share, two of them beside the stream.
TEST_CASE("shares of a gradient that come beside the stream are added in turn",
          "[branch][cuda][small]") {
  const int64_t C = 32;
  // Of all convolutions together, or of one each.
  const auto gradients = [&](Stream& stream, bool shared) {
    const auto leaf = [&](const Values& value, bool is_filter) {
      Var var = Var::leaf(tensor_of(stream, value, is_filter ? DType::bf16 : DType::f32), true);
      var.slot->dtype = DType::f32;
      return var;
    };
    std::vector<Var> w;
    for (int i = 0; i < (shared ? 1 : 3); ++i)
      w.push_back(leaf(normal("w", {C, 3, 3, C}, 0.1f), true));
    w.resize(3, w[0]);
    const auto vector = [&](float scale) { return leaf(normal("b", {C}, scale), false); };
    Tape tape(stream);
    const Var x = Var::leaf(tensor_of(stream, normal("x", {2, 8, 8, C}), DType::bf16), true);
    const Var t = Var::leaf(tensor_of(stream, normal("t", {2, C}), DType::bf16), true);
    const ops::ResidualBlockArgs block{{{4}, Activation::Gelu},
                                       w[1],
                                       vector(1),
                                       vector(1),
                                       vector(1),
                                       w[2],
                                       vector(1),
                                       vector(1),
                                       vector(1),
                                       {},
                                       {},
                                       {},
                                       {}};
    const Var h = ops::conv2d(tape, {1, 1, 1}, x, w[0], vector(1));
    const Var y = ops::residual_block(tape, ops::Fusion::On, h, {}, t, block);
    tape.backward_from(y, tensor_of(stream, normal("dy", y.shape()), DType::bf16));
    std::vector<std::vector<float>> result;
    for (const Var& filter : w) result.push_back(filter.grad().to_vector<float>(stream));
    return result;
  };
  on_cuda_devices([&](Stream& stream) {
    const auto apart = gradients(stream, false), together = gradients(stream, true);
    std::vector<float> sum(apart[0].size());  // as the way back comes by them
    for (size_t i = 0; i < sum.size(); ++i) sum[i] = apart[2][i] + apart[1][i] + apart[0][i];
    CHECK(together[0] == sum);
  });
}

TEST_CASE("ops that are computed beside the stream have the bits that they have in line",
          "[branch][recording][cuda][small]") {
  using Mode = Tape::Mode;
  on_all_devices([&](Stream& stream) {
    const auto leaf = [&](const char* name, const Shape& shape) {
      return Var::leaf(tensor_of(stream, normal(name, shape), DType::f32), true, name);
    };
    const int64_t N = 2, K = kSize / N;
    // The sum, and its gradients.
    const auto results = [&](Mode mode, bool in_branch) {
      const Var x = leaf("x", {N, 2, 2, K}), a = leaf("a", {N, K}), w = leaf("w", {K, K});
      Tape tape(stream, mode);
      const Var y = sum_with_branch(tape, x, a, w, in_branch);
      std::vector<std::vector<float>> values{y.value.to_vector<float>(stream)};
      if (mode == Mode::Inference) return values;
      tape.backward_from(y, tensor_of(stream, normal("dy", y.shape()), DType::f32));
      for (const Var& var : {x, a, w}) values.push_back(var.grad().to_vector<float>(stream));
      return values;
    };
    const auto in_line = results(Mode::Train, false);
    CHECK(results(Mode::Train, true) == in_line);
    CHECK(results(Mode::Inference, true)[0] == in_line[0]);

    const Var x = leaf("x", {N, 2, 2, K}), a = leaf("a", {N, K}), w = leaf("w", {K, K});
    Tensor twice = Tensor::empty(stream, x.shape());
    std::vector<float> expected = in_line[0];
    for (float& value : expected) value *= 2;
    Recording recording(stream);
    for (int i = 0; i < 3; ++i) {
      fill(stream, twice, 0);
      recording.run([&] {
        Tape tape(stream, Mode::Inference);
        const Var y = sum_with_branch(tape, x, a, w, true);
        add_fwd(stream, y.value, y.value, twice);
      });
      CHECK(twice.to_vector<float>(stream) == expected);
    }
  });
}

TEST_CASE("a tape that watches names what is not finite beside the stream",
          "[branch][cuda][small]") {
  on_all_devices([](Stream& stream) {
    const auto leaf = [&](const char* name, float value) {
      Var var = Var::leaf(Tensor::empty(stream, {2, 2}), true, name);
      fill(stream, var.value, value);
      return var;
    };
    // The error's tensor, for a projection by filters of this value.
    const auto named = [&](float value) -> std::string {
      const Var a = leaf("a", 1), w = leaf("w", value);
      Tape tape(stream);
      tape.watch();
      try {
        tape.beside([&, a, w] { ops::linear(tape, a, w, {}); });
      } catch (const NonFiniteError& error) {
        return error.tensor;
      }
      join(stream);
      return "";
    };
    CHECK(named(1) == "");
    CHECK(named(std::numeric_limits<float>::infinity()) == "w");
    CHECK(named(0x1.8p127f) == "linear");
    CHECK(named(1) == "");
  });
}

TEST_CASE("the gradient of a filter that an operation made is joined before it is read",
          "[branch][cuda]") {
  const int64_t C = 16;
  const auto gradient = [&](bool made) {
    Stream stream(Device::open(DeviceType::simt, 2));
    const auto leaf = [&](const char* name, const Shape& shape) {
      return Var::leaf(tensor_of(stream, normal(name, shape), DType::f32), true, name);
    };
    Tape tape(stream);
    const Shape filter{C, 3, 3, C};
    const Var w = leaf("w", filter), zero = Var::leaf(Tensor::zeros(stream, filter), true);
    const Var used = made ? ops::add(tape, w, zero) : w;
    const Var x = leaf("x", {2, 8, 8, C}), t = leaf("t", {2, C});
    const auto v = [&] { return leaf("v", {C}); };
    const ops::ResidualBlockArgs block{{{4}, Activation::Gelu},
                                       used,
                                       v(),
                                       v(),
                                       v(),
                                       leaf("w2", filter),
                                       v(),
                                       v(),
                                       v(),
                                       {},
                                       {},
                                       {},
                                       {}};
    const Var y = ops::residual_block(tape, ops::Fusion::On, x, {}, t, block);
    tape.backward_from(y, tensor_of(stream, normal("dy", y.shape()), DType::f32));
    return w.grad().to_vector<float>(stream);
  };
  const simt::ScopedOptions restore(simt::options());
  const auto expected = gradient(false);
  for (const auto landing : {simt::Landing::Latest, simt::Landing::Random}) {
    simt::options().landing = landing;
    CHECK(gradient(true) == expected);
  }
}

TEST_CASE("work beside a stream computes as the stream does", "[branch]") {
  for (const Math math : {Math::f32, Math::tf32}) {
    Stream stream(Device::open(DeviceType::simt, 2));
    stream.math = math;
    std::optional<Math> seen;
    beside(stream, [&](Stream& second) { seen = second.math; });
    join(stream);
    CHECK(seen == math);
  }
}
