// What the ops refuse, and that the message names the argument, what it is and what was expected.
#include <catch2/catch.hpp>

#include "autograd/residual_block.h"
#include "kernels/cpu/onednn.h"
#include "layers/unet.h"
#include "tests/temp_dir.h"
#include "tests/train_case.h"

using namespace tessera;
using Catch::Contains;

namespace {

// Leaves of zeros, all wanted, and a tape for the ops.
struct Bench {
  DeviceType device = DeviceType::cpu;
  Stream stream{Device::open(device, 2)};
  Tape tape{stream};

  Tensor zeros(const Shape& shape, DType dtype = DType::f32) {
    return Tensor::zeros(stream, shape, dtype);
  }
  Var var(const Shape& shape, DType dtype = DType::f32) {
    return Var::leaf(zeros(shape, dtype), true);
  }
};

template <class F>
std::string error_of(F&& call) {
  return message_of<Error>(call);
}

}  // namespace

TEST_CASE("conv2d refuses what does not fit", "[ops][errors]") {
  Bench b;
  const Var x = b.var({1, 4, 4, 3});
  const auto conv = [&](const Var& in, const Var& w, const Var& bias = {}) {
    return error_of([&] { ops::conv2d(b.tape, {1, 1, 1}, in, w, bias); });
  };
  CHECK_THAT(conv(x, b.var({2, 3, 3, 5})), Contains("x has 3 channels, w takes 5"));
  CHECK_THAT(conv(x, b.var({2, 7, 3, 3})),
             Contains("filter [2,7,3,3] is larger than the padded image [1,4,4,3]"));
  CHECK_THAT(conv(x, b.var({2, 0, 3, 3})), Contains("w is [2,0,3,3], expected at least one tap"));
  CHECK_THAT(conv(b.var({4, 3}), b.var({2, 3, 3, 3})), Contains("x is [4,3], w is [2,3,3,3]"));
  CHECK_THAT(conv(x, b.var({2, 3, 3, 3}), b.var({3})),
             Contains("conv2d_fwd: b is [3] f32, expected [2] f32"));
  CHECK_THAT(conv(x, b.var({2, 3, 3, 3}, DType::f64)),
             Contains("w is [2,3,3,3] f64, expected [2,3,3,3] f32"));
  CHECK_THAT(conv(b.var({1, 4, 4, 3}, DType::u8), b.var({2, 3, 3, 3}, DType::u8)),
             Contains("no CPU kernels for u8"));
  CHECK_THAT(error_of([&] {
               ops::conv2d(b.tape, {0, 1, 1}, x, b.var({2, 3, 3, 3}), {});
             }),
             Contains("stride 0"));
  Tensor y = b.zeros({1, 4, 4, 3});
  const int wide = 1 << 30;  // [1,4,4,3] with [2,3,3,3] gives [1,2^31+2,2,2]
  CHECK_THAT(error_of([&] {
               conv2d_fwd(b.stream, {1, wide, 0}, x.value, b.zeros({2, 3, 3, 3}), {}, y);
             }),
             Contains("y is [1,4,4,3] f32, expected [1,2147483650,2,2] f32"));

  const Tensor dy = b.zeros({1, 4, 4, 2}), w = b.zeros({2, 3, 3, 3});
  CHECK_THAT(error_of([&] {
               conv2d_bwd_data(b.stream, {1, 0, 0}, dy, w, {b.zeros({1, 4, 4, 3})});
             }),
             Contains("dy is [1,4,4,2] f32, expected [1,2,2,2] f32"));
  CHECK_THAT(error_of([&] {
               conv2d_bwd_weight(b.stream, {1, 1, 1}, x.value, dy, {w}, {b.zeros({5})});
             }),
             Contains("db is [5] f32, expected [2] f32"));
  // A bias alone.
  const auto bias = [&](const Shape& of_dy, const Shape& of_db) {
    return error_of([&] {
      conv2d_bwd_weight(b.stream, {1, 1, 1}, x.value, b.zeros(of_dy), {}, {b.zeros(of_db)});
    });
  };
  CHECK_THAT(bias({3, 4, 4, 2}, {2}), Contains("dy is [3,4,4,2] f32, expected [1,4,4,2] f32"));
  CHECK_THAT(bias({1, 4, 4, 2}, {5}), Contains("db is [5] f32, expected [2] f32"));
}

TEST_CASE("what oneDNN refuses is an error that names the problem", "[ops][errors]") {
  Bench b;
  auto& dnn = b.stream.state<cpu::OneDnn>();
  const Tensor x = b.zeros({1, 4, 4, 3}), w = b.zeros({2, 3, 3, 3}), y = b.zeros({1, 4, 4, 2});
  const auto conv = [&](int stride) {
    const ConvProblem problem{1, 4, 4, 3, 2, 3, 3, 4, 4, {stride, 1, 1}};
    return error_of([&] { dnn.conv_fwd(problem, x, cpu::FilterView::of(w), {}, y); });
  };
  CHECK(conv(1) == "");
  const int64_t made = dnn.primitives();
  const std::string message = conv(0);
  CHECK_THAT(message, Contains("oneDNN: ") && Contains("1 4 4 3 2 3 3 4 4 0 1 1") &&
                          Contains("[conv_fwd] (") && Contains("onednn.cpp:"));
  CHECK(dnn.primitives() == made);
}

TEST_CASE("conv_transpose2d refuses what does not fit", "[ops][errors]") {
  Bench b;
  const Var x = b.var({1, 4, 5, 3});
  const auto conv = [&](const Var& in, const Var& w, const Var& bias = {}) {
    return error_of([&] { ops::conv_transpose2d(b.tape, in, w, bias); });
  };
  for (const Var& in : {x, b.var({1, 0, 4, 3})})
    CHECK(conv(in, b.var({3, 2, 2, 7}), b.var({7})) == "");
  CHECK_THAT(conv(x, b.var({7, 2, 2, 3})), Contains("x is [1,4,5,3], w is [7,2,2,3]"));
  CHECK_THAT(conv(x, b.var({3, 3, 2, 7})), Contains("w is [3,3,2,7], expected [C,2,2,K]"));
  CHECK_THAT(conv(x, b.var({3, 2, 2, 7}), b.var({3})), Contains("b is [3] f32, expected [7] f32"));
  CHECK_THAT(conv(x, b.var({3, 2, 2, 7}, DType::f64)),
             Contains("w is [3,2,2,7] f64, expected [3,2,2,7] f32"));
  const Tensor dy = b.zeros({1, 8, 8, 7});
  CHECK_THAT(error_of([&] {
               conv_transpose2d_bwd_data(b.stream, dy, b.zeros({3, 2, 2, 7}), {x.value});
             }),
             Contains("is [1,8,8,7] f32, expected [1,8,10,7] f32"));
  CHECK_THAT(error_of([&] { conv_transpose2d_bwd_weight(b.stream, x.value, dy, {dy}, {}); }),
             Contains("dy is [1,8,8,7] f32, expected [1,8,10,7] f32"));
}

TEST_CASE("linear refuses what does not fit", "[ops][errors]") {
  Bench b;
  const auto linear = [&](const Shape& x, const Shape& w, const Shape& bias) {
    return error_of([&] { ops::linear(b.tape, b.var(x), b.var(w), b.var(bias)); });
  };
  CHECK_THAT(linear({2, 3}, {4, 5}, {4}), Contains("x is [2,3], w is [4,5]"));
  CHECK_THAT(linear({2, 3, 1}, {4, 3}, {4}), Contains("x is [2,3,1], w is [4,3]"));
  CHECK_THAT(linear({2, 3}, {4, 3}, {3}), Contains("b is [3] f32, expected [4] f32"));
  const auto weight = [&](const Tensor& x, const Tensor& dy, Grad dw, Grad db) {
    return error_of([&] { linear_bwd_weight(b.stream, x, dy, dw, db); });
  };
  const Tensor x = b.zeros({2, 3}), dy = b.zeros({2, 4}), db = b.zeros({4});
  CHECK(weight(x, dy, {}, {db}) == "");
  CHECK(weight(x, b.zeros({4}), {}, {}) == "");
  CHECK_THAT(weight(x, b.zeros({4}), {}, {db}), Contains("x is [2,3], dy is [4]"));
  CHECK_THAT(weight(x, b.zeros({5, 4}), {}, {db}), Contains("dy is [5,4] f32, expected [2,4] f32"));
  CHECK_THAT(weight(x, b.zeros({2, 4}, DType::bf16), {}, {db}),
             Contains("dy is [2,4] bf16, expected [2,4] f32"));
  CHECK_THAT(weight(x, dy, {b.zeros({3, 4})}, {}), Contains("dw is [3,4] f32, expected [4,3] f32"));
}

TEST_CASE("split_columns refuses what does not fit", "[ops][errors]") {
  Bench b;
  const Var x = b.var({2, 7});
  CHECK(error_of([&] { ops::split_columns(b.tape, x, {3, 0, 4}); }) == "");
  CHECK_THAT(error_of([&] {
               ops::split_columns(b.tape, x, {3, 3});
             }),
             Contains("x is [2,7], its parts have 6 columns"));
  CHECK_THAT(error_of([&] {
               ops::split_columns(b.tape, b.var({2, 7, 1}), {7});
             }),
             Contains("x is [2,7,1], expected [N,C]"));
  Tensor dx = b.zeros({2, 7});
  const std::vector<int64_t> widths{3, 4};
  const auto error = [&](const std::vector<Tensor>& dy) {
    return error_of([&] { split_columns_bwd(b.stream, widths, dy, {dx}); });
  };
  CHECK(error({{}, b.zeros({2, 4})}) == "");
  CHECK_THAT(error({b.zeros({2, 3})}), Contains("2 widths, 1 gradients"));
  const auto error_with = [&](const std::vector<int64_t>& wrong) {
    return error_of([&] { split_columns_bwd(b.stream, wrong, std::vector<Tensor>(2), {dx}); });
  };
  CHECK_THAT(error_with({-1, 8}), Contains("a part of -1 columns"));
  CHECK_THAT(error_with({3, 5}), Contains("its parts have 8 columns"));
  CHECK_THAT(error({b.zeros({2, 3}), b.zeros({2, 5})}), Contains("[2,5]") && Contains("[2,4]"));
}

TEST_CASE("norms refuse what does not fit", "[ops][errors]") {
  Bench b;
  const Var x = b.var({2, 3, 3, 6}), six = b.var({6});
  const auto norm = [&](int groups, const Var& gamma, const Var& beta) {
    return error_of([&] { ops::group_norm(b.tape, {groups}, x, gamma, beta); });
  };
  CHECK_THAT(norm(4, six, six), Contains("6 channels in 4 groups"));
  CHECK_THAT(norm(2, b.var({5}), six), Contains("gamma is [5] f32, expected [6] f32"));
  CHECK_THAT(norm(2, six, b.var({6, 1})), Contains("beta is [6,1] f32, expected [6] f32"));
  for (const Shape& none : {Shape{2, 0, 3, 6}, Shape{2, 3, 0, 6}})
    CHECK_THAT(error_of([&] { ops::group_norm(b.tape, {2}, b.var(none), six, six); }),
               Contains(concat("the mean of no elements, x is ", none)));
  CHECK_THAT(error_of([&] {
               const Var one = Var::leaf(b.zeros({6}), true),
                         y = ops::group_norm(b.tape, {2}, x, one, one);
               b.tape.backward_from(y, b.zeros(x.shape()));
             }),
             Contains("dgamma and dbeta are one tensor"));
  const auto fused = [&](const Var& t, const Var& residual) {
    return error_of([&] { ops::group_norm_act(b.tape, {{2}}, x, six, six, t, residual); });
  };
  CHECK_THAT(fused(b.var({2, 5}), {}), Contains("t is [2,5] f32, expected [2,6] f32"));
  CHECK_THAT(fused({}, b.var({2, 3, 4, 6})),
             Contains("residual is [2,3,4,6] f32, expected [2,3,3,6] f32"));
}

TEST_CASE("what GPUs' ways of GroupNorm refuse, on the host model", "[ops][errors][cuda]") {
  Bench b{DeviceType::simt};
  const auto by_images = [&](int groups, const Shape& x) {
    return error_of([&] { norm_by_images(b.stream, {groups}, x, DType::bf16); });
  };
  CHECK(by_images(8, {2, 4, 4, 64}) == "");
  for (const int groups : {0, 3, 128})
    CHECK_THAT(by_images(groups, {2, 4, 4, 64}), Contains(concat("64 channels in ", groups)));
  CHECK_THAT(by_images(8, {4, 64}), Contains("x is [4,64], expected [N,H,W,C]"));
  // Packs of one, 32 of them a block.
  Tensor x = b.zeros({1, 1, 1, 32 * 65535 + 1});
  CHECK_THAT(error_of([&] {
               add_broadcast_fwd(b.stream, x, x.reshape({1, x.numel()}), x);
             }),
             Contains("tiles of [1,1,1,2097121]"));
}

TEST_CASE("layout ops refuse what does not fit", "[ops][errors]") {
  Bench b;
  CHECK_THAT(error_of([&] {
               ops::space_to_channel(b.tape, b.var({1, 3, 4, 2}));
             }),
             Contains("x is [1,3,4,2], expected even H and W"));
  CHECK_THAT(error_of([&] {
               ops::channel_to_space(b.tape, b.var({1, 2, 2, 6}));
             }),
             Contains("x is [1,2,2,6], expected C a multiple of 4"));
  for (const Shape& odd : {Shape{1, 3, 4, 2}, {1, 4, 3, 2}})
    CHECK_THAT(error_of([&] { ops::pool(b.tape, Pooling::Max, b.var(odd)); }),
               Contains(concat("x is ", odd, ", expected even H and W")));
  CHECK_THAT(error_of([&] {
               pool_bwd(b.stream, Pooling::Max, {}, b.zeros({1, 2, 2, 3}), {b.zeros({1, 4, 4, 3})});
             }),
             Contains("pool_bwd: x is undefined"));
  CHECK_THAT(
      error_of([&] {
        pool_bwd(b.stream, Pooling::Average, {}, b.zeros({1, 2, 2, 3}), {b.zeros({1, 4, 6, 3})});
      }),
      Contains("dy is [1,2,2,3] f32, expected [1,2,3,3] f32"));
  CHECK_THAT(error_of([&] {
               Tensor y = b.zeros({1, 4, 4, 2});
               upsample_nearest_fwd(b.stream, b.zeros({1, 2, 2, 3}), y);
             }),
             Contains("y is [1,4,4,2] f32, expected [1,4,4,3] f32"));
  CHECK_THAT(error_of([&] {
               ops::concat_channels(b.tape, b.var({1, 4, 4, 3}), b.var({1, 4, 5, 2}));
             }),
             Contains("b is [1,4,5,2] f32, expected [1,4,4,2] f32"));
  CHECK_THAT(error_of([&] {
               ops::concat_upsample(b.tape, b.var({1, 2, 2, 3}), b.var({1, 4, 5, 2}));
             }),
             Contains("skip is [1,4,5,2] f32, expected [1,4,4,2] f32"));
  const auto upcat = [&](const Shape& skip, const Shape& w) {
    return error_of([&] {
      ops::upcat_conv2d(b.tape, b.var({1, 2, 2, 3}), b.var(skip), b.var(w), b.var({7}));
    });
  };
  CHECK_THAT(upcat({1, 5, 4, 2}, {7, 3, 3, 5}), Contains("low is [1,2,2,3], skip is [1,5,4,2]"));
  CHECK_THAT(upcat({1, 4, 4, 2}, {7, 3, 3, 4}),
             Contains("w takes 4 channels, low and skip have 3 + 2"));
  CHECK_THAT(upcat({1, 4, 4, 0}, {7, 3, 3, 3}), Contains("all need channels"));
  CHECK_THAT(upcat({1, 4, 4, 2}, {0, 3, 3, 5}), Contains("w is [0,3,3,5]: all need channels"));
  CHECK_THAT(error_of([&] {
               upcat_conv2d_bwd_data(b.stream, b.zeros({1, 4, 4, 0}), b.zeros({0, 3, 3, 5}), {},
                                     {b.zeros({1, 2, 2, 3})}, {b.zeros({1, 4, 4, 2})});
             }),
             Contains("w is [0,3,3,5]: all need channels"));

  const auto with_phases = [&](int64_t R, const Shape& shape, DType dtype) {
    return error_of([&] {
      Tensor y = b.zeros({1, 4, 4, 7});
      upcat_conv2d_fwd(b.stream, b.zeros({1, 2, 2, 3}), b.zeros({1, 4, 4, 2}),
                       b.zeros({7, R, R, 5}), {b.zeros(shape, dtype)}, {}, y);
    });
  };
  CHECK_THAT(with_phases(3, {7, 4, 4, 3}, DType::f32),
             Contains("phases is [7,4,4,3] f32, expected [7,4,4,3] bf16"));
  CHECK_THAT(with_phases(3, {7, 4, 4, 5}, DType::bf16),
             Contains("phases is [7,4,4,5] bf16, expected [7,4,4,3] bf16"));
  CHECK_THAT(with_phases(1, {7, 4, 4, 3}, DType::bf16), Contains("phases of a filter 1x1"));
  const auto turned = [&](const Shape& w, const Shape& shape, DType dtype = DType::f32) {
    return error_of([&] {
      const TurnedFilter one[] = {{b.zeros(w), b.zeros(shape, dtype)}};
      turn_filters(b.stream, one);
    });
  };
  CHECK(turned({7, 3, 2, 5}, {4, 3, 2, 7}) == "");
  CHECK_THAT(turned({7, 3, 5}, {5, 3, 7}), Contains("w is [7,3,5], expected [K,R,S,C]"));
  CHECK_THAT(turned({7, 3, 3, 5}, {6, 3, 3, 7}), Contains("turned is [6,3,3,7], w is [7,3,3,5]"));
  CHECK_THAT(turned({7, 3, 2, 5}, {5, 2, 3, 7}),
             Contains("turned is [5,2,3,7] f32, expected [5,3,2,7] f32"));
  CHECK_THAT(turned({7, 3, 3, 5}, {5, 3, 3, 7}, DType::bf16),
             Contains("turned is [5,3,3,7] bf16, expected [5,3,3,7] f32"));
  CHECK_THAT(error_of([&] {
               conv2d_bwd_data(b.stream, {1, 1, 1}, b.zeros({1, 4, 4, 7}), b.zeros({7, 3, 3, 5}),
                               {b.zeros({1, 4, 4, 5})}, {{}, b.zeros({7, 3, 3, 5}, DType::bf16)});
             }),
             Contains("turned is [7,3,3,5] bf16, expected [5,3,3,7] bf16"));
  const auto phases = [&](const Shape& w, const Shape& shape) {
    return error_of([&] {
      Tensor made = b.zeros(shape);
      upcat_phases(b.stream, std::vector<PhasedFilter>{{b.zeros(w), made}});
    });
  };
  CHECK_THAT(phases({7, 1, 1, 5}, {7, 4, 4, 3}), Contains("w is [7,1,1,5], expected 3x3"));
  CHECK_THAT(phases({7, 3, 3, 5}, {7, 4, 4, 6}), Contains("phases is [7,4,4,6], w is [7,3,3,5]"));
  CHECK_THAT(phases({7, 3, 3, 5}, {6, 4, 4, 3}),
             Contains("phases is [6,4,4,3] f32, expected [7,4,4,3] f32"));
}

TEST_CASE("sums and the loss refuse what does not fit", "[ops][errors]") {
  Bench b;
  CHECK_THAT(error_of([&] { ops::add(b.tape, b.var({2}), b.var({3})); }),
             Contains("b is [3] f32, expected [2] f32"));
  CHECK_THAT(error_of([&] {
               ops::add_broadcast(b.tape, b.var({2, 1, 1, 3}), b.var({3}));
             }),
             Contains("t is [3] f32, expected [2,3] f32"));
  CHECK_THAT(error_of([&] {
               ops::mse(b.tape, b.var({2, 3}), b.zeros({3, 2}));
             }),
             Contains("target is [3,2] f32, expected [2,3] f32"));
  CHECK_THAT(error_of([&] { ops::mse(b.tape, b.var({2}), b.zeros({2}, DType::f64)); }),
             Contains("target is [2] f64, expected [2] f32"));
  CHECK_THAT(error_of([&] {
               ops::mse(b.tape, b.var({0, 3}), b.zeros({0, 3}));
             }),
             Contains("the mean of no elements, [0,3]"));
  const Tensor none = b.zeros({0, 3}), one = b.zeros({1});
  CHECK_THAT(error_of([&] { mse_bwd(b.stream, none, none, one, {none}); }),
             Contains("the mean of no elements, [0,3]"));
  CHECK_THAT(error_of([&] { ops::timestep_embedding(b.tape, b.zeros({2}, DType::i32), 3); }),
             Contains("y is [2,3], expected [N,dim], dim even"));
  CHECK_THAT(error_of([&] { ops::timestep_embedding(b.tape, b.zeros({2}, DType::i64), 4); }),
             Contains("t is [2] i64, expected [2] i32"));
}

TEST_CASE("a residual block refuses what does not fit, fused and composed", "[ops][errors]") {
  Bench b;
  for (ops::Fusion fusion : {ops::Fusion::On, ops::Fusion::Off}) {
    ops::ResidualBlockArgs args{{{2}},      b.var({4, 3, 3, 3}), b.var({4}), b.var({4}),
                                b.var({4}), b.var({4, 3, 3, 4}), b.var({4}), b.var({4}),
                                b.var({4}), b.var({4, 1, 1, 3}), b.var({4})};
    const Var x = b.var({1, 6, 6, 3}), t = b.var({1, 4});
    const auto error = [&](const Var& in, const Var& given) {
      return error_of([&] { ops::residual_block(b.tape, fusion, in, {}, given, args); });
    };
    CHECK(error(x, t) == "");
    CHECK_THAT(error(b.var({1, 6, 6, 2}), t), Contains("x has 2 channels, w takes 3"));
    CHECK_THAT(error(x, b.var({1, 5})), Contains("[1,5] f32") && Contains("[1,4] f32"));
    CHECK_THAT(error(x, b.var({2, 4})), Contains("[2,4] f32") && Contains("[1,4] f32"));
    args.conv2_w = b.var({4, 3, 3, 3});
    CHECK_THAT(error(x, t), Contains("x has 4 channels, w takes 3"));
  }
}

TEST_CASE("the tape refuses gradients that do not fit", "[tape][errors]") {
  Bench b;
  const Var x = b.var({2, 3}), y = ops::add(b.tape, x, x);
  CHECK_THAT(error_of([&] { b.tape.backward(y); }),
             Contains("backward from [2,3], expected one element"));
  CHECK_THAT(error_of([&] {
               b.tape.backward_from(y, b.zeros({3, 2}));
             }),
             Contains("gradient [3,2] of a value [2,3]"));
  CHECK_THAT(error_of([&] { x.grad(); }), Contains("no gradient of"));
  const Var data = Var::leaf(b.zeros({1}));
  CHECK_THAT(error_of([&] { b.tape.backward(ops::add(b.tape, data, data)); }),
             Contains("depends on nothing that is trained"));
}

TEST_CASE("the optimizer refuses what does not fit", "[ops][errors]") {
  Bench b;
  const Tensor small = b.zeros({7});
  AdamTensors good;
  good.grads = b.zeros({8}), good.norm = b.zeros({1});
  good.params = b.zeros({8}), good.m = b.zeros({8}), good.v = b.zeros({8});
  const auto step = [&](int64_t number, Tensor AdamTensors::*member, const Tensor& value) {
    AdamTensors tensors = good;
    tensors.*member = value;
    return error_of([&] { adam_step(b.stream, {}, number, tensors); });
  };
  CHECK(step(1, &AdamTensors::norm, {}) == "");
  CHECK_THAT(step(0, &AdamTensors::params, good.params), Contains("counted from 1, not 0"));
  CHECK_THAT(step(1, &AdamTensors::params, small), Contains("params is [7] f32, expected [8] f32"));
  CHECK_THAT(step(1, &AdamTensors::v, small), Contains("v is [7] f32, expected [8] f32"));
  CHECK_THAT(step(1, &AdamTensors::copies, good.m),
             Contains("copies is [8] f32, expected [8] bf16"));
  CHECK_THAT(step(1, &AdamTensors::latch, small), Contains("latch is [7] f32, expected [1] i64"));
  CHECK_THAT(step(1, &AdamTensors::loss, small), Contains("loss is [7] f32, expected [1] f32"));
  AdamTensors without_norm = good;
  without_norm.norm = {};
  without_norm.latch = Tensor::zeros(b.stream, {1}, DType::i64);
  CHECK_THAT(error_of([&] { adam_step(b.stream, {}, 1, without_norm); }),
             Contains("norm is undefined"));
  AdamTensors doubles;
  for (Tensor AdamTensors::*member :
       {&AdamTensors::grads, &AdamTensors::params, &AdamTensors::m, &AdamTensors::v})
    doubles.*member = b.zeros({8}, DType::f64);
  CHECK(error_of([&] { adam_step(b.stream, {}, 1, doubles); }) == "");
  doubles.now = b.zeros({1}, DType::i64), doubles.factors = b.zeros({8});
  CHECK_THAT(error_of([&] { adam_step(b.stream, {}, 1, doubles); }),
             Contains("now and factors are of updates in f32, not f64"));
  Tensor copies = Tensor::empty(b.stream, {7}, DType::bf16);
  CHECK_THAT(error_of([&] { copy_rounded(b.stream, good.params, copies); }),
             Contains("copies is [7] bf16, expected [8] bf16"));
}

TEST_CASE("parts of a concatenation, shortcuts and images that do not fit", "[ops][errors]") {
  Stream stream(Device::open(DeviceType::cpu, 1));
  const auto zeros = [&](const Shape& s) { return Tensor::zeros(stream, s); };
  CHECK_THAT(message_of<Error>([&] {
               concat_channels_bwd(stream, zeros({1, 2, 2, 3}), {zeros({1, 2, 2, 5})}, {});
             }),
             Catch::Contains("[1,2,2,5] is no part of [1,2,2,3]"));
  Tape tape(stream);
  const auto var = [&](const Shape& s) { return Var::leaf(zeros(s), true); };
  ops::ResidualBlockArgs args{{{2}},    var({4, 3, 3, 4}), var({4}), var({4}),
                              var({4}), var({4, 3, 3, 4}), var({4}), var({4}),
                              var({4}), var({4, 1, 1, 4}), {}};
  for (ops::Fusion fusion : {ops::Fusion::On, ops::Fusion::Off})
    CHECK_THAT(message_of<Error>([&] {
                 ops::residual_block(tape, fusion, var({1, 6, 6, 4}), {}, var({1, 4}), args);
               }),
               Catch::Contains("a shortcut has both weight and bias"));
  UNet model(stream, tiny_options().network(), 1);
  const Tensor t = Tensor::zeros(stream, {1}, DType::i32);
  CHECK(message_of<UsageError>([&] {
          model.forward(tape, Var::leaf(zeros({1, 8, 7, 1})), t);
        }) == "image size 8x7 does not fit 1 levels: expected positive multiples of 2");
}
