// What a training step holds: of a block its input and two results of convolutions.
#include <catch2/catch.hpp>

#include "autograd/residual_block.h"
#include "tests/op_runner.h"

using namespace tessera;

TEST_CASE("a residual block keeps its convolutions' results for the way back, and its own",
          "[memory][fused]") {
  for (const bool shortcut : {false, true}) {
    Stream stream(poisoned_cpu());
    const int64_t K = 16, C = shortcut ? 8 : 16;
    const Pool& pool = *stream.device().pool();
    const auto leaf = [&](const Shape& shape) {
      return Var::leaf(tensor_of(stream, draw(Numbers::Normal, "p", 0, shape), DType::f32), true);
    };
    ops::ResidualBlockArgs args{{{4}},     leaf({K, 3, 3, C}), leaf({K}), leaf({K}),
                                leaf({K}), leaf({K, 3, 3, K}), leaf({K}), leaf({K}),
                                leaf({K}), leaf({K, 8}),       leaf({K}), {},
                                {}};
    if (shortcut) args.shortcut_w = leaf({K, 1, 1, C}), args.shortcut_b = leaf({K});
    const Var x = leaf({1, 16, 16, C}), time = leaf({1, 8});
    Tape tape(stream);
    const size_t before = pool.bytes_in_use();
    const Var y = ops::residual_block(tape, ops::Fusion::On, x, {}, time, args);
    // 16 KiB each; linear(time) and the moments of both norms are in the smallest class.
    CHECK(pool.bytes_in_use() - before == 3 * 16384 + 3 * 64);
    tape.backward_from(y, Tensor::zeros(stream, y.shape()));
    CHECK(find_non_finite(stream, x.grad()) == -1);
  }
}
