// The convolutions' CUDA kernels on every profile of the host model, at shapes that their tiles do
// not divide and at shapes that select each tile. Sums of products of small integers are exact
// whatever their order, so results must equal the oracle's, rounded once to the storage's type;
// those of random numbers must have the same bits in any order of blocks and threads.
#include <catch2/catch.hpp>
#include <span>

#include "core/simt/trace.h"
#include "kernels/cuda/conv_halo_launch.h"
#include "tests/conv_runs.h"

using namespace tessera;
using namespace tessera::conv_runs;

namespace {

// Whether sub-pixel kernels serve an upcat_conv2d: they round once, where others round the gradient
// of the concatenation first.
bool has_phases(const ConvCase& c, const Path& mode, int capability) {
  const bool packs = c.A % 8 == 0 && c.x[3] % 8 == 0 && c.w[0] % 8 == 0;
  return mode.dtype == DType::bf16 && capability >= 80 && packs && c.w[1] == 3 && c.x[1] >= 10 &&
         c.x[2] >= 10;
}

void check_exact(const ConvCase& c, std::initializer_list<int> capabilities,
                 std::span<const Path> modes = kPaths) {
  Stream oracle(poisoned_cpu());
  for (const Path& mode : modes) {
    const std::vector<Values> right = expected(oracle, c, mode);
    for (int capability : capabilities) {
      const bool rounded_twice =
          c.A && c.w[1] == 3 && mode.dtype == DType::bf16 && !has_phases(c, mode, capability);
      for (const int multiprocessors : {0, 1}) {
        if (multiprocessors && !(mode.dtype == DType::bf16 && capability == 90)) continue;
        INFO(mode.name << " on " << capability << ", multiprocessors " << multiprocessors << ": x "
                       << c.x << ", w " << c.w << ", stride " << c.spec.stride << ", A " << c.A);
        const auto got = on_simt(c, mode, Numbers::Integers, capability, 1, simt::Landing::Latest,
                                 multiprocessors);
        for (size_t i = rounded_twice ? 2 : 0; i < right.size(); ++i) {
          INFO("result " << i << " of " << right.size());
          CHECK(difference(got[i], right[i], 0) == "");
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("convolutions on every profile, at channels that tiles do not divide", "[cuda][slow]") {
  struct Channels {
    int64_t C, K;
  };
  for (const auto& [C, K] : {Channels{31, 33},
                             {32, 64},
                             {33, 31},
                             {63, 65},
                             {64, 128},
                             {65, 63},
                             {127, 1},
                             {128, 32},
                             {129, 3},
                             {1, 128},
                             {3, 129},
                             {7, 127},
                             {20, 7}})
    check_exact({{1, 1, 1}, {1, 5, 7, C}, {K, 3, 3, C}}, {75, 80, 89, 90});
  check_exact({{1, 1, 1}, {1, 6, 8, 10}, {7, 3, 3, 10}, 3}, {75, 80, 89, 90});
}

TEST_CASE("convolutions on every profile, with strides and padding", "[cuda]") {
  for (const ConvCase& c : {ConvCase{{2, 0, 0}, {2, 9, 7, 64}, {72, 2, 2, 64}},
                            {{2, 1, 1}, {1, 8, 9, 24}, {40, 3, 3, 24}},
                            {{3, 0, 2}, {1, 11, 8, 20}, {8, 2, 5, 20}},
                            {{1, 3, 3}, {2, 3, 4, 8}, {16, 7, 7, 8}},
                            {{4, 0, 0}, {1, 10, 10, 16}, {8, 1, 1, 16}},
                            // Windows that tile the image: its gradient is made of patches.
                            {{2, 0, 0}, {2, 8, 10, 64}, {72, 2, 2, 64}},
                            {{2, 0, 0}, {1, 6, 10, 3}, {7, 2, 2, 3}},
                            {{3, 0, 0}, {1, 9, 12, 8}, {16, 3, 3, 8}}})
    check_exact(c, {75, 80, 89, 90});
}

TEST_CASE("every tile of the convolutions", "[cuda][slow]") {
  // Many pixels and few channels on the other side: the largest tile with 128 channels, the next
  // with 64 (PixelTiles), for y and for dx.
  for (int64_t channels : {64, 128}) {
    check_exact({{}, {1, 182, 182, 8}, {channels, 1, 1, 8}}, {75, 80, 90});
    check_exact({{}, {1, 182, 182, channels}, {8, 1, 1, channels}}, {75, 80, 90});
    check_exact({{}, {1, 182, 182, 16}, {channels, 1, 1, 16}, 8}, {75, 80, 90});
  }
  // The same of dx in patches of 2x2.
  for (int64_t C : {16, 32}) check_exact({{2, 0, 0}, {1, 364, 364, C}, {8, 2, 2, C}}, {75, 80, 90});
  // The filters' tiles: more than 64 rows k and columns c.
  for (int64_t K : {32, 64, 96})
    for (int64_t A : {0, 64})
      for (int pad : {0, 1})  // of bf16, halo tiles have 3x3
        check_exact({{1, pad, pad}, {2, 16, 18, 96}, {K, 2 * pad + 1, 2 * pad + 1, 96}, A},
                    {75, 90});
}

TEST_CASE("halo tiles at small sizes", "[cuda][small]") {
  const std::span<const Path> bf16_only(&kPaths[2], 1);
  // Two steps of depth, and two tiles.
  check_exact({{1, 1, 1}, {1, 5, 9, 40}, {8, 3, 3, 40}}, {80}, bf16_only);
  check_exact({{1, 1, 1}, {1, 10, 10, 24}, {8, 3, 3, 24}, 16}, {80}, bf16_only);
  // So many parts of the phases' gradients that several threads add them.
  check_exact({{1, 1, 1}, {9, 12, 12, 24}, {8, 3, 3, 24}, 16}, {80}, bf16_only);
  // Two images a tile, of which the last one does not exist.
  check_exact({{1, 1, 1}, {3, 5, 7, 8}, {8, 3, 3, 8}, 0, ConvTile::k2x8x8x64}, {80}, bf16_only);
}

TEST_CASE("halo tiles: borders, tails of channels, every tile", "[cuda][slow]") {
  const std::span<const Path> bf16_only(&kPaths[2], 1);
  // Images that tiles do not divide, and channels that steps and tiles do not.
  for (const ConvCase& c : {ConvCase{{1, 1, 1}, {3, 17, 19, 40}, {72, 3, 3, 40}},
                            {{1, 1, 1}, {3, 5, 7, 8}, {8, 3, 3, 8}},
                            {{1, 1, 1}, {5, 1, 1, 96}, {136, 3, 3, 96}},
                            {{1, 1, 1}, {1, 9, 33, 64}, {64, 3, 3, 64}},
                            {{1, 1, 1}, {1, 18, 10, 72}, {24, 3, 3, 72}, 40}})
    check_exact(c, {80, 90}, bf16_only);
  // A filter so large that the parts of its gradient are added by packs.
  check_exact({{1, 1, 1}, {2, 8, 18, 176}, {176, 3, 3, 176}}, {80}, bf16_only);
  for (const ConvTileSize& size : kConvTiles) {
    const int64_t wide = odd_channels(size);
    check_exact({{1, 1, 1}, {3, 9, 19, 24}, {wide, 3, 3, 24}, 0, size.tile}, {80}, bf16_only);
    check_exact({{1, 1, 1}, {3, 9, 19, wide}, {24, 3, 3, wide}, 0, size.tile}, {80}, bf16_only);
    // So many steps that rings of stages come round, in both directions.
    check_exact({{1, 1, 1}, {3, 9, 11, wide}, {wide, 3, 3, wide}, 0, size.tile}, {90}, bf16_only);
  }
}

TEST_CASE("the sub-pixel form: borders, tails of channels, every tile", "[cuda][slow]") {
  const std::span<const Path> bf16_only(&kPaths[2], 1);
  // Few blocks; steps of 32 channels that low and skip do not fill; more than 128 of low, for the
  // filters; images as narrow as they come, and two of them in a tile of the filters' gradient.
  for (const ConvCase& c : {ConvCase{{1, 1, 1}, {2, 18, 20, 112}, {72, 3, 3, 112}, 72},
                            {{1, 1, 1}, {1, 34, 38, 16}, {8, 3, 3, 16}, 8},
                            {{1, 1, 1}, {3, 10, 10, 176}, {136, 3, 3, 176}, 136},
                            {{1, 1, 1}, {2, 10, 18, 64}, {64, 3, 3, 64}, 24}})
    check_exact(c, {80, 90}, bf16_only);
  // 96 blocks and more: forward with 64 and 128 channels, two images at once, of which the last one
  // does not exist.
  check_exact({{1, 1, 1}, {25, 10, 12, 16}, {256, 3, 3, 16}, 8}, {80}, bf16_only);
  check_exact({{1, 1, 1}, {49, 10, 12, 16}, {64, 3, 3, 16}, 8}, {80}, bf16_only);
  check_exact({{1, 1, 1}, {12, 10, 34, 16}, {64, 3, 3, 16}, 8}, {80}, bf16_only);
  check_exact({{1, 1, 1}, {6, 18, 34, 16}, {128, 3, 3, 16}, 8}, {80}, bf16_only);
  // Rings of stages come round.
  check_exact({{1, 1, 1}, {25, 10, 10, 88}, {256, 3, 3, 88}, 40}, {90}, bf16_only);
  check_exact({{1, 1, 1}, {49, 10, 10, 88}, {64, 3, 3, 88}, 40}, {90}, bf16_only);
  check_exact({{1, 1, 1}, {12, 10, 34, 88}, {64, 3, 3, 88}, 40}, {90}, bf16_only);
  check_exact({{1, 1, 1}, {6, 18, 34, 88}, {128, 3, 3, 88}, 40}, {90}, bf16_only);
  // The same of low's gradient.
  check_exact({{1, 1, 1}, {27, 10, 12, 456}, {8, 3, 3, 456}, 448}, {89}, bf16_only);
}

TEST_CASE("halo tiles are for images whose packs 32 bits count", "[cuda][small]") {
  const simt::ScopedOptions scope(host_model(80));
  Stream stream(poisoned(DeviceType::simt));
  const auto served = [&](const Shape& x, int64_t K) {
    const ConvProblem problem = ConvProblem::of({1, 1, 1}, x, {K, 3, 3, x[3]});
    return simt::conv::has_halo_kernels(stream, simt::conv::Sizes(problem));
  };
  // 32 packs a pixel, of x or of dy: with two rows more these are 2^31, or a row less. A tile has
  // two images at most.
  for (const auto& [C, K] : {std::pair(256, 8), std::pair(8, 256)}) {
    CHECK_FALSE(served({1, 8190, 8192, C}, K));
    CHECK(served({1, 8189, 8192, C}, K));
    for (const int64_t N : {2, 3}) {
      CHECK_FALSE(served({N, 4095, 8192, C}, K));
      CHECK(served({N, 4094, 8192, C}, K));
    }
  }
}

TEST_CASE("halo tiles read shared memory without bank conflicts", "[cuda]") {
  simt::Options options;
  options.profile = simt::profile_of(80);
  options.sampled_blocks = 4;
  const simt::ScopedOptions scope(options);
  // Every tile, forward and back, over one source and two: see "every tile" above.
  for (const ConvCase& c : {ConvCase{{1, 1, 1}, {1, 8, 8, 64}, {64, 3, 3, 64}},
                            {{1, 1, 1}, {1, 10, 10, 64}, {64, 3, 3, 64}, 32},
                            {{1, 1, 1}, {2, 5, 9, 64}, {64, 3, 3, 64}, 0, ConvTile::k16x16x64},
                            {{1, 1, 1}, {2, 5, 9, 128}, {128, 3, 3, 128}, 0, ConvTile::k8x16x128},
                            {{1, 1, 1}, {2, 5, 9, 128}, {128, 3, 3, 128}, 0, ConvTile::k2x8x8x128},
                            {{1, 1, 1}, {2, 5, 9, 64}, {64, 3, 3, 64}, 0, ConvTile::k2x8x8x64},
                            {{1, 1, 1}, {24, 10, 18, 16}, {64, 3, 3, 16}, 8},
                            {{1, 1, 1}, {24, 10, 18, 16}, {128, 3, 3, 16}, 8},
                            {{1, 1, 1}, {25, 10, 12, 16}, {256, 3, 3, 16}, 8},
                            {{1, 1, 1}, {49, 10, 12, 16}, {64, 3, 3, 16}, 8},
                            {{1, 1, 1}, {27, 10, 12, 456}, {8, 3, 3, 456}, 448},
                            {{1, 1, 1}, {24, 10, 18, 520}, {8, 3, 3, 520}, 512}}) {
    INFO(c.x << " -> " << c.w[0]);
    const simt::LaunchTrace trace;
    Stream stream(poisoned(DeviceType::simt));
    run(stream, c, DType::bf16, Numbers::Normal, DType::bf16);
    uint64_t matrices = 0, passes = 0;
    for (const simt::LaunchRecord& launch : trace.launches) {
      matrices += launch.counted[simt::kMatrices];
      passes += launch.counted[simt::kPasses];
    }
    CHECK(matrices > 0);
    CHECK(passes == matrices);
  }
}

// dlow and dskip, added to what is there or not.
std::vector<Values> parts_of(Stream& stream, const ConvCase& c, DType storage, GradMode mode) {
  const auto input = [&](const char* name, const Shape& shape) {
    return tensor_of(stream, draw(Numbers::Integers, name, 0, shape), storage);
  };
  const Shape low{c.x[0], c.x[1] / 2, c.x[2] / 2, c.A}, skip{c.x[0], c.x[1], c.x[2], c.x[3] - c.A};
  const Tensor dy = input("dy", c.y()), w = input("w", c.w);
  Tensor dlow = input("dlow", low), dskip = input("dskip", skip);
  upcat_conv2d_bwd_data(stream, dy, w, {}, {dlow, mode}, {dskip, mode});
  return {values_of(stream, dlow), values_of(stream, dskip)};
}

void check_parts(const ConvCase& c, GradMode mode, int capability,
                 std::initializer_list<DType> storages) {
  Stream oracle(poisoned_cpu());
  INFO("x " << c.x << ", w " << c.w << " on " << capability);
  const auto right = parts_of(oracle, c, DType::f64, mode);
  simt::Options options;
  options.profile = simt::profile_of(capability);
  options.trap_uninitialised = true;
  const simt::ScopedOptions scope(options);
  Stream stream(poisoned(DeviceType::simt));
  for (const DType storage : storages) {
    const auto got = parts_of(stream, c, storage, mode);
    for (size_t i = 0; i < got.size(); ++i) {
      INFO("result " << i);
      CHECK(difference(got[i], storage == DType::bf16 ? as_bf16(right[i]) : right[i], 0) == "");
    }
  }
}

TEST_CASE("what is added to is read of images that there are", "[cuda][small]") {
  // A tile has two images of 8 x 8: of the third one's neighbour AddressSanitizer says that it is
  // not there.
  const Shape x{3, 8, 8, 64}, w{64, 3, 3, 64};
  Stream stream(poisoned(DeviceType::simt));
  force_tile(stream, ConvTile::k2x8x8x64, x, 64);
  const auto ones = [&](const Shape& shape) {
    return tensor_of(stream, {shape, std::vector<double>(size_t(shape.numel()), 1)}, DType::bf16);
  };
  const Tensor dy = ones(x), filter = ones(w);
  Tensor dx = Tensor::empty(stream, x, DType::bf16), sum = ones(x);
  conv2d_bwd_data(stream, {1, 1, 1}, dy, filter, {dx});
  conv2d_bwd_data(stream, {1, 1, 1}, dy, filter, {sum, GradMode::Accumulate});
  const Values alone = values_of(stream, dx), added = values_of(stream, sum);
  for (size_t i = 0; i < alone.data.size(); ++i)
    REQUIRE(added.data[i] == to_float(to_bf16(float(alone.data[i] + 1))));
}

TEST_CASE("the gradients of both parts are added to what is there", "[cuda]") {
  const ConvCase c{{1, 1, 1}, {2, 10, 12, 40}, {8, 3, 3, 40}, 24},
      one{{}, {2, 10, 12, 40}, {8, 1, 1, 40}, 24};
  for (const GradMode mode : {GradMode::Overwrite, GradMode::Accumulate}) {
    check_parts(c, mode, 75, {DType::f32});
    check_parts(c, mode, 80, {DType::f32, DType::bf16});
    for (int capability : {75, 80}) check_parts(one, mode, capability, {DType::f32, DType::bf16});
  }
}

TEST_CASE("the gradient of 128 and more channels of low", "[cuda][slow]") {
  check_parts({{1, 1, 1}, {24, 10, 18, 520}, {8, 3, 3, 520}, 512}, GradMode::Accumulate, 80,
              {DType::bf16});
  for (const int64_t N : {24, 27})  // wide tiles, and of two images; rings of stages come round
    check_parts({{1, 1, 1}, {N, 10, N == 24 ? 18 : 10, 456}, {72, 3, 3, 456}, 448},
                GradMode::Overwrite, 90, {DType::bf16});
}

TEST_CASE("convolutions have the same bits in any order", "[cuda]") {
  for (const ConvCase& c : {ConvCase{{1, 1, 1}, {2, 17, 33, 24}, {40, 3, 3, 24}},
                            {{1, 1, 1}, {1, 31, 33, 3}, {7, 3, 3, 3}},
                            {{2, 1, 1}, {2, 33, 31, 20}, {33, 3, 3, 20}},
                            {{1, 1, 1}, {3, 9, 8, 72}, {136, 3, 3, 72}},
                            {{1, 1, 1}, {2, 10, 18, 40}, {40, 3, 3, 40}, 24},
                            {{}, {2, 30, 32, 24}, {72, 1, 1, 24}, 8}})
    for (const Path& mode : kPaths)
      for (int capability : {75, 80}) {
        INFO(mode.name << " on " << capability << ": x " << c.x);
        const auto one = on_simt(c, mode, Numbers::Normal, capability, 1, simt::Landing::Earliest),
                   two = on_simt(c, mode, Numbers::Normal, capability, 2, simt::Landing::Random);
        for (size_t i = 0; i < one.size(); ++i) CHECK(one[i].data == two[i].data);
      }
}
