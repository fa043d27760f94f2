// The forms of filters that kernels read beside the filter itself: phases of the sub-pixel form,
// filters turned for data gradients.
#include <catch2/catch.hpp>
#include <cmath>

#include "kernels/kernels.h"
#include "tests/cuda_devices.h"

using namespace tessera;

TEST_CASE("forms of a filter that are given are those that are used", "[cuda]") {
  const simt::ScopedOptions restore(simt::options());
  Stream stream(poisoned(DeviceType::simt));
  const auto input = [&](const char* name, const Shape& shape) {
    return tensor_of(stream, as_bf16(normal(name, shape)), DType::bf16);
  };
  const Tensor low = input("low", {1, 5, 6, 8}), skip = input("skip", {1, 10, 12, 8}),
               w = input("w", {8, 3, 3, 16}), dy = input("dy", {1, 10, 12, 8});
  const auto results = [&](const FilterForms& forms) {
    Tensor y = Tensor::empty(stream, dy.shape(), DType::bf16),
           dlow = Tensor::empty(stream, low.shape(), DType::bf16),
           dskip = Tensor::empty(stream, skip.shape(), DType::bf16);
    upcat_conv2d_fwd(stream, low, skip, w, forms, {}, y);
    upcat_conv2d_bwd_data(stream, dy, w, forms, {dlow}, {dskip});
    return std::vector{values_of(stream, y).data, values_of(stream, dlow).data,
                       values_of(stream, dskip).data};
  };
  // Alone, and between two packs: there kernels make their own.
  const auto empty = [&](const Shape& shape) { return Tensor::empty(stream, shape, DType::bf16); };
  Tensor phases = empty({8, 4, 4, 8});
  const Tensor turned = empty({8, 3, 3, 8}), turned_phases = empty({8, 4, 4, 8}),
               more = empty({8 * 16 * 8 + 4});
  upcat_phases(stream, std::vector<PhasedFilter>{{w, phases}});
  turn_filters(stream, std::vector<TurnedFilter>{{w, turned}, {phases, turned_phases}});
  const auto own = results({});
  CHECK(results({phases, turned, turned_phases}) == own);
  const auto zeros = [&](const Shape& shape, int64_t before = 0) {
    Tensor zeros = more.slice(before, shape);
    zeros.zero(stream);
    return zeros;
  };
  const std::vector<double> none(own[1].size()), no_skip(own[2].size());
  auto got = results({zeros(phases.shape())});
  CHECK(got[0] != own[0]);
  CHECK(got[1] == none);
  CHECK(got[2] == own[2]);
  got = results({phases, zeros(turned.shape()), turned_phases});
  CHECK(got == std::vector{own[0], own[1], no_skip});
  got = results({phases, turned, zeros(turned_phases.shape())});
  CHECK(got == std::vector{own[0], none, own[2]});
  const auto between = [&](const Tensor& t) { return zeros(t.shape(), 4); };
  CHECK(results({between(phases)}) == own);
  CHECK(results({{}, between(turned)}) == own);
  CHECK(results({{}, {}, between(turned_phases)}) == own);
}

TEST_CASE("a turned filter that is given is the one that is used", "[cuda]") {
  const simt::ScopedOptions restore(simt::options());
  Stream stream(poisoned(DeviceType::simt));
  const auto input = [&](const char* name, const Shape& shape, DType dtype = DType::bf16) {
    return tensor_of(stream, as_bf16(normal(name, shape)), dtype);
  };
  const Tensor x = input("x", {2, 9, 7, 16}), w = input("w", {24, 3, 3, 16}),
               dy = input("dy", {2, 9, 7, 24}), gamma = input("gamma", {16}, DType::f32),
               beta = input("beta", {16}, DType::f32);
  Tensor moments = Tensor::empty(stream, {2, 4, 2}),
         h = Tensor::empty(stream, x.shape(), x.dtype());
  group_norm_fwd(stream, {4}, x, gamma, beta, h, moments);
  const auto results = [&](const FilterForms& forms) {
    Tensor dx = Tensor::empty(stream, x.shape(), x.dtype()),
           dz = Tensor::empty(stream, x.shape(), x.dtype());
    conv2d_bwd_data(stream, {1, 1, 1}, dy, w, {dx}, forms);
    norm_act_conv2d_bwd(stream, {{4}}, {1, 1, 1}, x, moments, gamma, beta, {}, w, dy, {dz}, {}, {},
                        {}, forms);
    return std::vector{values_of(stream, dx).data, values_of(stream, dz).data};
  };
  const auto own = results({});
  const Tensor more = Tensor::empty(stream, {16 * 9 * 24 + 4}, DType::bf16);
  for (const int64_t before : {0, 4}) {
    Tensor turned = more.slice(before, {16, 3, 3, 24});
    turn_filters(stream, std::vector<TurnedFilter>{{w, turned}});
    CHECK(results({{}, turned}) == own);
    turned.zero(stream);
    const std::vector none(2, std::vector<double>(own[0].size()));
    CHECK(results({{}, turned}) == (before ? own : none));
  }
}

TEST_CASE("a filter's phases are sums of its taps, rounded once", "[cuda][small]") {
  Stream oracle(poisoned_cpu());
  const Values w = normal("w", {5, 3, 3, 7});
  for (const auto& [device, from] : {std::pair(DeviceType::simt, DType::f32),
                                     {DeviceType::simt, DType::bf16},
                                     {DeviceType::cpu, DType::f32},
                                     {DeviceType::cpu, DType::bf16}}) {
    Stream stream(poisoned(device));
    const Values values = from == DType::bf16 ? as_bf16(w) : w;
    Tensor right = Tensor::empty(oracle, {5, 4, 4, 3}, DType::f64),
           got = Tensor::empty(stream, {5, 4, 4, 3}, DType::bf16);
    upcat_phases(oracle, std::vector<PhasedFilter>{{tensor_of(oracle, values, DType::f64), right}});
    upcat_phases(stream, std::vector<PhasedFilter>{{tensor_of(stream, values, from), got}});
    // Half a unit of bf16's last place, and what sums of f32 lose.
    const Values exact = values_of(oracle, right), rounded = values_of(stream, got);
    for (size_t i = 0; i < exact.data.size(); ++i) {
      INFO(i);
      CHECK(std::abs(rounded.data[i] - exact.data[i]) <= std::abs(exact.data[i]) / 256 + 1e-6);
    }
  }
  // By definition: of a filter of ones, how many taps fall on one pixel of low.
  const Tensor ones = tensor_of(oracle, {{1, 3, 3, 1}, std::vector<double>(9, 1.0)}, DType::f64);
  Tensor phases = Tensor::empty(oracle, {1, 4, 4, 1}, DType::f64);
  upcat_phases(oracle, std::vector<PhasedFilter>{{ones, phases}});
  CHECK(values_of(oracle, phases).data ==
        std::vector<double>{1, 2, 2, 4, 2, 1, 4, 2, 2, 4, 1, 2, 4, 2, 2, 1});
}

TEST_CASE("phases of more filters than a launch takes are those of each", "[cuda]") {
  const Values w = as_bf16(normal("w", {3, 3, 3, 20}));
  for (const size_t count : {15, 16, 17, 35}) {
    Stream stream(poisoned(DeviceType::simt));
    std::vector<PhasedFilter> all;
    for (size_t i = 0; i < count; ++i) {
      const int64_t K = int64_t(1 + i % 3), C = int64_t(4 + i % 17), A = i == 5 ? 0 : C - i % 3;
      const Values part{{K, 3, 3, C}, {w.data.begin(), w.data.begin() + K * 9 * C}};
      all.push_back(
          {tensor_of(stream, part, DType::f32), Tensor::empty(stream, {K, 4, 4, A}, DType::bf16)});
    }
    upcat_phases(stream, all);
    for (const PhasedFilter& f : all) {
      INFO(f.w.shape() << " of " << count);
      const PhasedFilter alone{f.w, Tensor::empty(stream, f.phases.shape(), DType::bf16)};
      upcat_phases(stream, std::span(&alone, 1));
      CHECK(values_of(stream, f.phases).data == values_of(stream, alone.phases).data);
    }
  }
}
