// Convolutions of more tiles or filters than the CPU transforms at a time
// (kernels/cpu/winograd.cpp); small ones are in the table of cases.
#include <catch2/catch.hpp>

#include "autograd/ops.h"
#include "kernels/cpu/winograd.h"
#include "kernels/cpu/winograd_plan.h"
#include "tests/op_runner.h"

using namespace tessera;

namespace {

OpCase conv2d_case(const Shape& x, int64_t K, const ConvSpec& spec) {
  OpCase c;
  c.op = "conv2d", c.name = concat(x, " -> ", K, ", padded by ", spec.pad_h);
  c.inputs = {x, {K, 3, 3, x[3]}, {K}};
  c.conv = ConvProblem::of(spec, c.inputs[0], c.inputs[1]);
  c.roles = {Role::Activation, Role::Weight, Role::Vector};
  c.apply = [spec](Tape& tape, const std::vector<Var>& in) {
    return ops::conv2d(tape, spec, in[0], in[1], in[2]);
  };
  return c;
}

OpCase upcat_case(const Shape& low, int64_t B, int64_t K) {
  OpCase c;
  c.op = "upcat_conv2d", c.name = concat(low, ", ", B, " -> ", K);
  c.inputs = {low, {low[0], 2 * low[1], 2 * low[2], B}, {K, 3, 3, low[3] + B}, {K}};
  c.conv = ConvProblem::of({1, 1, 1}, c.inputs[1], {K, 3, 3, B});
  c.roles = {Role::Activation, Role::Activation, Role::Weight, Role::Vector};
  c.apply = [](Tape& tape, const std::vector<Var>& in) {
    return ops::upcat_conv2d(tape, in[0], in[1], in[2], in[3]);
  };
  return c;
}

using cpu::winograd::Plan, cpu::winograd::tiles_along;

// How its forward pass is cut.
Plan plan_of(int threads, const OpCase& c) {
  const Shape& w = c.inputs[c.inputs.size() - 2];
  return {threads, c.conv->N, c.conv->P, c.conv->Q, w[3], c.conv->K};
}

}  // namespace

TEST_CASE("a convolution of many tiles or filters equals the f64 oracle, by any number of threads",
          "[ops]") {
  const auto run_with = [](int threads, const OpCase& c, DType storage, GradMode mode) {
    Stream stream(poisoned(DeviceType::cpu, threads));
    stream.state<cpu::OneDnn>().products = cpu::Bf16Products::Widened;
    if (storage != DType::f64)
      REQUIRE(cpu::goes_by_winograd(stream, *c.conv, Tensor::empty(stream, {0}, storage)));
    return run(stream, c, c.apply, storage, Numbers::Normal, mode, DType::bf16);
  };
  const OpCase of_tiles[] = {conv2d_case({5, 41, 37, 32}, 33, {1, 1, 1}),
                             conv2d_case({3, 45, 51, 40}, 32, {1, 0, 0}),
                             upcat_case({5, 21, 19, 33}, 32, 32)},
               of_filters[] = {conv2d_case({1, 9, 7, 160}, 160, {1, 1, 1}),
                               upcat_case({1, 3, 5, 160}, 32, 160)},
               of_both = conv2d_case({1, 33, 33, 160}, 160, {1, 1, 1});
  // One thread takes several parts of tiles, or of filters for the same tiles, and two share them.
  for (const OpCase& c : of_tiles) {
    const int64_t tiles = c.conv->N * tiles_along(c.conv->P) * tiles_along(c.conv->Q);
    REQUIRE(plan_of(1, c).tiles_at_once() < tiles);
    REQUIRE(plan_of(2, c).down() == 2);
  }
  for (const OpCase& c : of_filters) {
    REQUIRE(plan_of(1, c).channels_at_once() < c.conv->K);
    REQUIRE(plan_of(2, c).across() == 2);
  }
  // Filters are transformed anew for each part of the tiles.
  REQUIRE(plan_of(1, of_both).tiles_at_once() < 81);
  REQUIRE(plan_of(1, of_both).channels_at_once() < 160);
  std::vector<OpCase> cases(std::begin(of_tiles), std::end(of_tiles));
  cases.insert(cases.end(), std::begin(of_filters), std::end(of_filters));
  cases.push_back(of_both);
  for (const OpCase& c : cases)
    for (const GradMode mode : {GradMode::Overwrite, GradMode::Accumulate}) {
      INFO(c.op << ' ' << c.name << (mode == GradMode::Overwrite ? "" : " accumulating"));
      const Result oracle = run_with(2, c, DType::f64, mode);
      for (const int threads : {1, 2, 3})
        CHECK(difference(run_with(threads, c, DType::f32, mode), oracle, 1e-5) == "");
      CHECK(difference(run_with(2, c, DType::bf16, mode), oracle, 1e-2) == "");
    }
}

TEST_CASE("shares of a convolution by tiles are each tile and channel once", "[ops]") {
  const auto check = [](int threads, int64_t N, int64_t side, int64_t written) {
    INFO(threads << " threads, " << N << " images of " << side << ", " << written << " channels");
    const Plan plan(threads, N, side, side, 64, written);
    CHECK(plan.shares() <= threads);
    std::vector<int> times(size_t(N * tiles_along(side) * tiles_along(side) * written));
    for (int64_t share = 0; share < plan.shares(); ++share) {
      const auto tiles = plan.tiles_of(share), channels = plan.channels_of(share);
      CHECK((tiles.count > 0 && channels.count > 0));
      for (int64_t tile = tiles.first; tile < tiles.end(); ++tile)
        for (int64_t c = channels.first; c < channels.end(); ++c)
          ++times.at(size_t(tile * written + c));
    }
    CHECK(times == std::vector<int>(times.size(), 1));
  };
  for (int threads = 1; threads <= 17; ++threads)
    for (const int64_t written : {32, 33, 65, 250, 512})
      for (const int64_t side : {3, 8, 33}) {
        check(threads, 1, side, written);
        check(threads, 7, side, written);
      }
}

TEST_CASE("convolutions do not go by few tiles, nor by half empty ones", "[ops]") {
  Stream stream(Device::open(DeviceType::cpu));
  const auto by_tiles = [&](int64_t side, int64_t N) {
    const Shape x{N, side, side, 32}, w{32, 3, 3, 32};
    return cpu::goes_by_winograd(stream, ConvProblem::of({1, 1, 1}, x, w),
                                 Tensor::empty(stream, {0}));
  };
  for (const int64_t side : {3, 4, 6, 7, 8, 11}) CHECK(by_tiles(side, 4));
  for (const int64_t side : {1, 2, 5}) CHECK_FALSE(by_tiles(side, 4));
  for (const int64_t side : {6, 8, 11}) CHECK(by_tiles(side, 1));
  for (const int64_t side : {3, 4}) CHECK_FALSE(by_tiles(side, 3));
}
