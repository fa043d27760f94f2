// What a training step holds: of a block its input and two results of convolutions, and of memory
// hardly more than what is in use at once.
#include <catch2/catch.hpp>

#include "autograd/residual_block.h"
#include "core/recording.h"
#include "core/simt/options.h"
#include "tests/op_runner.h"
#include "tests/training_step.h"

using namespace tessera;

namespace {

// Steps of which only the requests for memory count: launches have no blocks, memory is address
// space alone.
simt::Options nothing_computed() {
  simt::Options options = simt::options();
  options.reserve_from = 1, options.blocks = 0;
  return options;
}

}  // namespace

TEST_CASE("a residual block keeps its convolutions' results for the way back, and its own",
          "[memory][fused]") {
  for (const bool shortcut : {false, true}) {
    Stream stream(poisoned_cpu());
    const int64_t K = 16, C = shortcut ? 8 : 16;
    const Pool& pool = *stream.device().pool();
    const auto leaf = [&](const Shape& shape) {
      return Var::leaf(tensor_of(stream, normal("p", shape), DType::f32), true);
    };
    ops::ResidualBlockArgs args{
        {{4}},     leaf({K, 3, 3, C}), leaf({K}), leaf({K}), leaf({K}), leaf({K, 3, 3, K}),
        leaf({K}), leaf({K}),          leaf({K}), {},        {}};
    if (shortcut) args.shortcut_w = leaf({K, 1, 1, C}), args.shortcut_b = leaf({K});
    const Var x = leaf({1, 16, 16, C}), t = leaf({1, K});
    Tape tape(stream);
    const size_t before = pool.bytes_in_use();
    const Var y = ops::residual_block(tape, ops::Fusion::On, x, {}, t, args);
    // 16 KiB each; the moments of both norms are in the smallest class.
    CHECK(pool.bytes_in_use() - before == 3 * 16384 + 2 * 64);
    tape.backward_from(y, Tensor::zeros(stream, y.shape()));
    CHECK(find_non_finite(stream, x.grad()) == -1);
  }
}

TEST_CASE("the block of a recorded step is hardly larger than what is in use at once",
          "[memory][cuda]") {
  UNetConfig small;
  small.levels = 2, small.base = 16, small.time_dim = 16;
  const simt::ScopedOptions restore(simt::options());
  simt::options() = nothing_computed();
  for (const Precision& precision : {Precision::f32(), Precision::bf16()})
    for (const auto& [config, batch, side] :
         {std::tuple(small, 3, 16), {small, 8, 32}, {UNetConfig{}, 8, 64}}) {
      INFO(name_of(precision.storage) << ' ' << batch << " images of " << side);
      Stream stream(Device::open(DeviceType::simt, 2));
      const auto pool = stream.device().pool();
      const Shape shape{batch, side, side, 1};
      TrainingStep step(stream, config, precision, Tensor::zeros(stream, shape, precision.storage),
                        Tensor::zeros(stream, shape));
      RequestLog log(pool, stream.order());
      {
        const Stream::MemoryFrom scope(stream, &log);
        step.work();
      }
      const size_t peak = live_peak(log.lives()), before = pool->bytes_in_use();
      CHECK(plan_memory(log.lives()).bytes <= peak + peak / 10);
      Recording recording(stream);
      for (int i = 0; i < 3; ++i) recording.run([&] { step.work(); });
      CHECK(pool->bytes_in_use() - before >= peak);
      CHECK(pool->bytes_in_use() - before <= peak + peak / 10);
    }
}

TEST_CASE("the way back of a block gives conv2's output back first", "[memory]") {
  Stream stream(Device::open(DeviceType::cpu, 1));
  Pool& pool = *stream.device().pool();
  const int64_t K = 16;
  const auto leaf = [&](const Shape& shape) {
    return Var::leaf(tensor_of(stream, normal("p", shape), DType::f32), true);
  };
  ops::ResidualBlockArgs args{
      {{4}},     leaf({K, 3, 3, K}), leaf({K}), leaf({K}), leaf({K}), leaf({K, 3, 3, K}),
      leaf({K}), leaf({K}),          leaf({K}), {},        {}};
  const Var x = leaf({1, 64, 64, K}), t = leaf({1, K});
  Tape tape(stream);
  const size_t image = size_t(64 * 64 * K) * 4;
  const Var y = ops::residual_block(tape, ops::Fusion::On, x, {}, t, args);
  const size_t before = pool.bytes_in_use();
  Tensor dy = Tensor::zeros(stream, y.shape());
  tape.backward_from(y, std::move(dy));
  CHECK(pool.peak_bytes() - before < image * 5 / 2);
}
