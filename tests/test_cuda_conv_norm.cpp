// Convolutions of bf16 that take a GroupNorm's sums on their way, at shapes that tiles and packs do
// not divide, on every profile that has tensor cores: the forward one against what it has stored,
// the way back against its composition of plain ops in double precision.
#include <catch2/catch.hpp>
#include <cmath>

#include "tests/cuda_devices.h"
#include "tests/forced_tile.h"

using namespace tessera;

namespace {

constexpr ConvSpec kSame{1, 1, 1};

// multiprocessors: 0, those of the profile; 1, for which one or two blocks of halo tiles are few.
simt::Options late_or_random(int capability, uint64_t seed, int multiprocessors) {
  simt::Options options = host_model(capability, simt::Order::Random, seed, multiprocessors);
  options.landing = seed % 2 ? simt::Landing::Latest : simt::Landing::Random;
  return options;
}

struct FusedCase {
  Shape x;
  int64_t K;
  int groups;
  int64_t A = 0;     // channels of x that come from a map of half its size
  float bias = 0;    // of y: a large mean
  bool made = true;  // by halo tiles
  std::optional<ConvTile> tile = {};
};

std::string text_of(const FusedCase& c) {
  return concat(c.x, " -> ", c.K, " in ", c.groups, " groups, A ", c.A, ", bias ", c.bias);
}

Tensor drawn(Stream& stream, const char* name, const Shape& shape, float scale = 1,
             DType dtype = DType::bf16) {
  Values values = normal(name, shape, scale);
  return tensor_of(stream, dtype == DType::f32 ? values : as_bf16(values), dtype);
}

struct Forward {
  Values y, moments;
  bool made;
};

Forward forward(const FusedCase& c, bool with_moments, int capability, uint64_t seed,
                int multiprocessors = 0) {
  const simt::ScopedOptions scope(late_or_random(capability, seed, multiprocessors));
  Stream stream(poisoned(DeviceType::simt));
  const Shape& s = c.x;
  const Tensor w = drawn(stream, "w", {c.K, 3, 3, s[3]}, 0.3f);
  const Tensor b =
      tensor_of(stream, {{c.K}, std::vector<double>(size_t(c.K), double(c.bias))}, DType::f32);
  Tensor y = Tensor::empty(stream, {s[0], s[1], s[2], c.K}, DType::bf16);
  MomentsOut out{{c.groups}, Tensor::empty(stream, {s[0], c.groups, 2})};
  MomentsOut* const wanted = with_moments ? &out : nullptr;
  force_tile(stream, c.tile, s, c.K);
  if (c.A)
    upcat_conv2d_fwd(stream, drawn(stream, "low", {s[0], s[1] / 2, s[2] / 2, c.A}),
                     drawn(stream, "skip", {s[0], s[1], s[2], s[3] - c.A}), w, {}, b, y, wanted);
  else
    conv2d_fwd(stream, kSame, drawn(stream, "x", s), w, b, y, wanted);
  return {values_of(stream, y), values_of(stream, out.moments), out.made};
}

// Mean and rstd of the groups of y, in double precision.
Values moments_of(const Values& y, int groups) {
  const int64_t N = y.shape[0], C = y.shape[3], P = y.shape[1] * y.shape[2], D = C / groups;
  Values result{{N, groups, 2}, {}};
  for (int64_t n = 0; n < N; ++n)
    for (int64_t g = 0; g < groups; ++g) {
      const auto sum = [&](auto f) {
        double total = 0;
        for (int64_t p = 0; p < P; ++p)
          for (int64_t c = g * D; c < (g + 1) * D; ++c)
            total += f(y.data[size_t((n * P + p) * C + c)]);
        return total / double(P * D);
      };
      const double mean = sum([](double v) { return v; });
      const double variance = sum([&](double v) { return (v - mean) * (v - mean); });
      result.data.push_back(mean);
      result.data.push_back(1 / std::sqrt(variance + 1e-5));
    }
  return result;
}

void check_forward(const FusedCase& c, std::initializer_list<int> capabilities) {
  for (int capability : capabilities) {
    INFO(text_of(c) << " on " << capability);
    const Forward got = forward(c, true, capability, 1), again = forward(c, true, capability, 2, 1);
    CHECK(got.made == c.made);
    CHECK(got.y.data == forward(c, false, capability, 1).y.data);
    CHECK(got.y.data == again.y.data);
    if (!c.made) continue;
    CHECK(got.moments.data == again.moments.data);
    const Values right = moments_of(got.y, c.groups);
    for (size_t i = 0; i < right.data.size(); i += 2) {
      INFO("group " << i / 2);
      const double mean = right.data[i], rstd = right.data[i + 1];
      CHECK(std::abs(got.moments.data[i] - mean) <= 3e-7 * std::abs(mean) + 4e-6 / rstd);
      CHECK(std::abs(got.moments.data[i + 1] - rstd) <= 1e-5 * rstd);
    }
  }
}

// Inputs of the way back, in bf16 or, of the same numbers, in f64; dx, dgamma, dbeta, dt.
struct BackwardCase {
  Shape x;
  int64_t K;
  int groups;
  Activation act = Activation::Gelu;
  GradMode mode = GradMode::Overwrite;
  bool with_t = true;
  bool unaligned = false;  // dx lies between two packs
  std::optional<ConvTile> tile = {};
  int unaligned_vector = 0;  // 1, 2, 3: gamma, beta or t lies between two packs
};

std::vector<Values> backward(Stream& stream, const BackwardCase& c, DType dtype, bool composed) {
  const DType master = master_of(dtype);
  const Shape& s = c.x;
  const auto input = [&](const char* name, const Shape& shape, float scale = 1, int64_t shift = 0) {
    return tensor_of(stream, as_bf16(normal(name, shape, scale)), dtype, shift);
  };
  const auto vector = [&](const char* name, int64_t shift = 0) {
    return tensor_of(stream, as_bf16(normal(name, {s[3]})), master, shift);
  };
  const auto shift = [&](int number) { return int64_t{c.unaligned_vector == number}; };
  const Tensor x = input("x", s), w = input("w", {c.K, 3, 3, s[3]}, 0.2f);
  const Tensor dy = input("dy", {s[0], s[1], s[2], c.K}), gamma = vector("gamma", shift(1)),
               beta = vector("beta", shift(2));
  const Tensor t = c.with_t ? input("t", {s[0], s[3]}, 1, shift(3)) : Tensor{};
  Values m = moments_of(values_of(stream, x), c.groups);
  const Tensor moments = tensor_of(stream, m, master);
  Tensor dx = input("dx", s, 1, c.unaligned);
  Tensor dgamma = vector("dgamma"), dbeta = vector("dbeta"),
         dt = c.with_t ? input("dt", {s[0], s[3]}) : Tensor{};
  const Grad grads[] = {{dx, c.mode}, {dgamma, c.mode}, {dbeta, c.mode}, {dt, c.mode}};
  const NormAct spec{{c.groups}, c.act};
  force_tile(stream, c.tile, s, c.K);
  if (composed) {
    Tensor dh = Tensor::empty(stream, s, dtype);
    conv2d_bwd_data(stream, kSame, dy, w, {dh});
    group_norm_act_bwd(stream, spec, x, moments, gamma, beta, t, dh, grads[0], grads[1], grads[2],
                       grads[3]);
  } else {
    norm_act_conv2d_bwd(stream, spec, kSame, x, moments, gamma, beta, t, w, dy, grads[0], grads[1],
                        grads[2], grads[3]);
  }
  std::vector<Values> results;
  for (const Grad& grad : grads)
    if (grad) results.push_back(values_of(stream, grad.tensor));
  return results;
}

void check_backward(const BackwardCase& c, std::initializer_list<int> capabilities) {
  Stream oracle(poisoned_cpu());
  const auto right = backward(oracle, c, DType::f64, true);
  const auto run_on = [&](int capability, int multiprocessors) {
    std::vector<Values> first;
    for (uint64_t seed : {1, 2}) {
      const simt::ScopedOptions scope(late_or_random(capability, seed, multiprocessors));
      Stream stream(poisoned(DeviceType::simt));
      const auto got = backward(stream, c, DType::bf16, false);
      if (first.empty()) first = got;
      REQUIRE(got.size() == right.size());
      for (size_t i = 0; i < right.size(); ++i) {
        INFO(c.x << " <- " << c.K << " on " << capability << ", result " << i);
        CHECK(difference(got[i], right[i], 1e-2) == "");
        CHECK(got[i].data == first[i].data);
      }
    }
  };
  for (int capability : capabilities) {
    run_on(capability, 0);
    if (capability == 90) run_on(capability, 1);
  }
}

}  // namespace

TEST_CASE("convolutions with a norm's sums at small sizes", "[cuda][small]") {
  check_forward({{1, 5, 9, 8}, 8, 2}, {80});
  check_forward({{1, 10, 10, 24}, 8, 1, 16}, {80});
  check_backward({{1, 5, 9, 8}, 8, 2}, {80});
  // Two images a tile, of which the last one does not exist.
  FusedCase two{{3, 5, 7, 8}, 8, 2};
  two.tile = ConvTile::k2x8x8x64;
  check_forward(two, {80});
  BackwardCase back{{3, 5, 7, 8}, 8, 2};
  back.tile = ConvTile::k2x8x8x64;
  check_backward(back, {80});
}

TEST_CASE("a convolution leaves the moments of what it stores", "[cuda]") {
  for (const FusedCase& c : {FusedCase{{2, 5, 7, 8}, 8, 1},
                             {{3, 17, 19, 8}, 72, 3},  // a group in two tiles of channels

                             {{1, 9, 33, 16}, 64, 8},
                             {{2, 8, 8, 8}, 8, 8},
                             {{1, 18, 10, 24}, 24, 3, 16},
                             {{1, 16, 16, 8}, 16, 2, 0, 100},
                             {{1, 17, 9, 8}, 16, 2, 0, -1000}})
    check_forward(c, {80, 89, 90});
  // Not by halo tiles: images that are tiny, channels without packs, no tensor cores.
  check_forward({{2, 4, 9, 8}, 8, 1, 0, 0, false}, {80});
  check_forward({{1, 6, 6, 7}, 8, 1, 0, 0, false}, {80});
  check_forward({{1, 6, 6, 8}, 8, 1, 0, 0, false}, {75});
}

TEST_CASE("a convolution leaves moments with every tile", "[cuda][slow]") {
  for (const ConvTileSize& size : kConvTiles)
    check_forward({{3, 9, 19, 24}, odd_channels(size), 4, 0, 0, true, size.tile}, {80, 90});
  check_forward({{12, 10, 34, 16}, 64, 4, 8}, {80, 90});
  check_forward({{6, 18, 34, 16}, 128, 16, 8}, {80, 90});
  check_forward({{25, 10, 12, 16}, 256, 16, 8}, {80, 90});
  check_forward({{49, 10, 12, 16}, 64, 4, 8}, {80, 90});
}

TEST_CASE("the way back through norm, GELU and convolution in one", "[cuda]") {
  for (Activation form : {Activation::Gelu, Activation::GeluTanh, Activation::Relu})
    for (const BackwardCase& c : {BackwardCase{{2, 5, 7, 8}, 8, 1, form},
                                  {{2, 17, 19, 72}, 8, 3, form},
                                  {{1, 9, 33, 16}, 24, 8, form, GradMode::Accumulate},
                                  {{1, 8, 8, 16}, 8, 4, form, GradMode::Overwrite, false}})
      check_backward(c, {80, 89, 90});
  // By the plain ops: images that are tiny, channels or addresses without packs, no tensor cores.
  check_backward({{2, 3, 9, 8}, 8, 1}, {80});
  check_backward({{1, 6, 6, 12}, 7, 3}, {80});
  check_backward({{1, 6, 6, 8}, 8, 2}, {75});
  for (GradMode mode : {GradMode::Overwrite, GradMode::Accumulate})
    check_backward({{1, 8, 8, 16}, 8, 4, Activation::Gelu, mode, true, true}, {80});
  for (int vector : {1, 2, 3}) {
    BackwardCase unaligned{{1, 8, 8, 16}, 8, 4};
    unaligned.unaligned_vector = vector;
    check_backward(unaligned, {80});
  }
}

TEST_CASE("no images have no moments and no gradients", "[cuda]") {
  const simt::ScopedOptions scope(host_model(80));
  Stream stream(poisoned(DeviceType::simt));
  const Shape s{0, 8, 8, 8};
  Tensor none = Tensor::empty(stream, s, DType::bf16), dgamma = Tensor::empty(stream, {8}),
         dbeta = tensor_of(stream, {{8}, {1, 2, 3, 4, 5, 6, 7, 8}}, DType::f32);
  const Tensor w = drawn(stream, "w", {8, 3, 3, 8}), gamma = Tensor::zeros(stream, {8});
  MomentsOut out{{2}, Tensor::empty(stream, {0, 2, 2}), true};
  conv2d_fwd(stream, kSame, none, w, {}, none, &out);
  CHECK(!out.made);
  norm_act_conv2d_bwd(stream, {{2}}, kSame, none, out.moments, gamma, gamma, {}, w, none, {none},
                      {dgamma}, {dbeta, GradMode::Accumulate}, {});
  CHECK(dgamma.to_vector<float>(stream) == std::vector<float>(8, 0.0f));
  CHECK(dbeta.to_vector<float>(stream) == std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8});
}

TEST_CASE("moments that are known are not computed again", "[cuda]") {
  const simt::ScopedOptions scope(host_model(80));
  for (const auto& [type, dtype] : {std::pair(DeviceType::simt, DType::bf16),
                                    {DeviceType::cpu, DType::f32},
                                    {DeviceType::cpu, DType::f64}}) {  // the oracle
    INFO(name_of(type) << ' ' << name_of(dtype));
    Stream stream(poisoned(type));
    const DType master = master_of(dtype);
    const auto of = [&](const Shape& shape, std::vector<double> values, DType as) {
      return tensor_of(stream, {shape, std::move(values)}, as);
    };
    const Shape shape{1, 4, 4, 8};
    const Tensor x = of(shape, normal("x", shape).data, dtype),
                 zeros = of({8}, std::vector<double>(8), master),
                 ones = of({8}, std::vector<double>(8, 1.0), master);
    Tensor y = Tensor::empty(stream, shape, dtype), moments = of({1, 1, 2}, {100, 1}, master);
    group_norm_act_fwd(stream, {{1}}, x, ones, zeros, {}, {}, y, moments, true);
    for (double value : values_of(stream, y).data) CHECK(std::abs(value) < 1e-30);  // gelu(x - 100)
    CHECK(values_of(stream, moments).data == std::vector<double>{100, 1});
  }
}

TEST_CASE("the way back in one with every tile", "[cuda][slow]") {
  for (Activation form : {Activation::Gelu, Activation::GeluTanh, Activation::Relu})
    for (const ConvTileSize& size : kConvTiles) {
      BackwardCase c{{3, 9, 19, odd_channels(size)}, 24, 4, form};
      c.tile = size.tile;
      check_backward(c, {80, 90});
    }
}

TEST_CASE("the way back in one computes only the gradients that are wanted", "[cuda]") {
  const simt::ScopedOptions scope(host_model(80));
  Stream stream(poisoned(DeviceType::simt));
  const Shape s{2, 6, 5, 16};
  const Tensor x = drawn(stream, "x", s), w = drawn(stream, "w", {8, 3, 3, 16}, 0.2f),
               dy = drawn(stream, "dy", {2, 6, 5, 8}), t = drawn(stream, "t", {2, 16}),
               gamma = drawn(stream, "gamma", {16}, 1, DType::f32),
               beta = drawn(stream, "beta", {16}, 1, DType::f32);
  const Tensor moments = tensor_of(stream, moments_of(values_of(stream, x), 4), DType::f32);
  const auto run = [&](const Grad(&g)[4]) {
    norm_act_conv2d_bwd(stream, {{4}}, kSame, x, moments, gamma, beta, t, w, dy, g[0], g[1], g[2],
                        g[3]);
  };
  const auto fresh = [&](int i) {
    return i == 0   ? Tensor::empty(stream, s, DType::bf16)
           : i == 3 ? Tensor::empty(stream, {2, 16}, DType::bf16)
                    : Tensor::empty(stream, {16});
  };
  Grad all[4];
  for (int i = 0; i < 4; ++i) all[i].tensor = fresh(i);
  run(all);
  for (int i = 0; i < 4; ++i) {
    Grad one[4];
    one[i].tensor = fresh(i);
    run(one);
    INFO("result " << i);
    CHECK(values_of(stream, one[i].tensor).data == values_of(stream, all[i].tensor).data);
  }
}
