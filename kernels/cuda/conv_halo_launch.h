// Where halo tiles serve a convolution, which tile, and where its results go.
#pragma once

#include <algorithm>

#include "kernels/cuda/conv_halo_wgrad.h"
#include "kernels/cuda/sum_parts.h"

namespace tessera::TESSERA_CUDA::conv {

// Whether there are kernels for this convolution of bf16 here, when all channels are in packs.
inline bool has_halo_kernels(Stream& stream, const Sizes& s) {
  return stream.device().info().capability >= 80 && s.R == 3 && s.S == 3 && s.stride == 1 &&
         s.pad_h == 1 && s.pad_w == 1;
}

// Images that a tile of 8 x 8 would be mostly zeros for: forward and the data's gradient are left
// to the implicit product.
inline bool is_tiny(const Sizes& s) { return s.H < 5 || s.W < 5; }

// ---- Outputs: before(...) is what is added to a pixel's sums in two neighbouring channels,
// store() takes a block's results from shared memory to where they belong. kBlocks: of 256
// threads, that registers must leave room for on a multiprocessor; 0: as the compiler likes.

struct Two {
  float values[2];
  __device__ __forceinline__ float operator[](int i) const { return values[i]; }
};
__device__ __forceinline__ bool is_inside(const HaloSizes& s, const Place& at) {
  return at.h < s.H && at.w < s.W;
}
__device__ __forceinline__ int64_t pixel_number(const Place& at, int H, int W) {
  return int64_t(at.n * H + at.h) * W + at.w;
}
__device__ __forceinline__ Two load_two(const bf16* from) {
  const auto two = Pack<bf16, 2>::load(from);
  return {two[0], two[1]};
}

// A block's results -> y [N,H,W,K], channels `column` and on; add: to what is there.
template <class Tile>
__device__ __forceinline__ void store_image(const HaloSizes& sizes, const Place& first, int column,
                                            const HaloResults<Tile>& results, bf16* y, int K,
                                            bool add) {
  constexpr int kPacks = Tile::BN / 8;
  for (int i = int(threadIdx.x); i < Tile::BM * kPacks; i += Tile::kThreads) {
    const int m = i / kPacks, x = i % kPacks * 8;
    const Place at = pixel_of<Tile>(first, m);
    if (!is_inside(sizes, at) || column + x >= K) continue;
    bf16* const to = y + pixel_number(at, sizes.H, sizes.W) * K + column + x;
    auto pack = Pack<bf16, 8>::load(&results.out[m][x]);
    if (add) {
      const auto before = Pack<bf16, 8>::load(to);
      TESSERA_UNROLL
      for (int j = 0; j < 8; ++j) pack.set(j, before[j] + pack[j]);
    }
    pack.store(to);
  }
}

// y [N,H,W,K] = sums + bias, or += sums, rounded once.
struct HaloImage {
  static constexpr int kBlocks = 0;
  bf16* y;
  const float* bias;  // or null
  int K;
  bool accumulate;

  __device__ __forceinline__ Two before(const HaloSizes& sizes, const Place& at, int k) const {
    if (k >= K) return {};
    if (bias) return {bias[k], bias[k + 1]};
    if (!accumulate || !is_inside(sizes, at)) return {};
    return load_two(y + pixel_number(at, sizes.H, sizes.W) * K + k);
  }
  template <class Tile>
  __device__ __forceinline__ void store(const HaloSizes& sizes, const Place& first, int column,
                                        const HaloResults<Tile>& results) const {
    store_image(sizes, first, column, results, y, K, false);
  }
};

// The two parts of a gradient of concat(upsample(low), skip): dskip [N,H,W,B] gets its channels,
// dlow [N,H/2,W/2,A] the sums of 2x2 pixels, all of which are in one tile. Both are sums of what
// the whole gradient would be, rounded. A block's channels belong to one of the two: A is a
// multiple of BN.
struct HaloParts {
  static constexpr int kBlocks = 2;
  bf16 *dlow, *dskip;
  int A, B;
  bool add_low, add_skip;

  __device__ __forceinline__ Two before(const HaloSizes&, const Place&, int) const { return {}; }
  template <class Tile>
  __device__ __forceinline__ void store(const HaloSizes& sizes, const Place& first, int column,
                                        const HaloResults<Tile>& results) const {
    if (column >= A) return store_image(sizes, first, column - A, results, dskip, B, add_skip);
    constexpr int kPacks = Tile::BN / 8, kAcross = Tile::TW / 2;
    for (int i = int(threadIdx.x); i < Tile::BM / 4 * kPacks; i += Tile::kThreads) {
      const int patch = i / kPacks, x = i % kPacks * 8;
      const int m = patch / kAcross * (2 * Tile::TW) + patch % kAcross * 2;
      const Place at = pixel_of<Tile>(first, m);
      if (!is_inside(sizes, at)) continue;
      bf16* to = dlow + pixel_number({at.n, at.h / 2, at.w / 2}, sizes.H / 2, sizes.W / 2) * A +
                 column + x;
      Pack<bf16, 8> sum, in[4];
      TESSERA_UNROLL
      for (int p = 0; p < 4; ++p)
        in[p] = Pack<bf16, 8>::load(&results.out[m + p / 2 * Tile::TW + p % 2][x]);
      if (add_low) sum = Pack<bf16, 8>::load(to);
      TESSERA_UNROLL
      for (int j = 0; j < 8; ++j)
        sum.set(j, (add_low ? sum[j] : 0) + ((in[0][j] + in[1][j]) + (in[2][j] + in[3][j])));
      sum.store(to);
    }
  }
};

// ---- Tiles. As in conv_launch.h, numbers of blocks do not depend on the GPU at hand.
inline constexpr int64_t kEnoughHaloBlocks = 96;

template <class Tile>
int64_t pixel_tiles(int N, int H, int W) {
  return ceil_div(N, Tile::TN) * ceil_div(H, Tile::TH) * ceil_div(W, Tile::TW);
}

// Calls f(tile).
template <class F>
void with_halo_tile(int N, int H, int W, int columns, const F& f) {
  using Few = HaloTile<16, 16, 64, 64, 32>;  // channels
  using Many = HaloTile<8, 16, 128, 64, 32>;
  using Small = HaloTile<8, 8, 64, 32, 32>;
  const auto enough = [&]<class Tile>(Tile) {
    return W > 8 && pixel_tiles<Tile>(N, H, W) * ceil_div(columns, Tile::BN) >= kEnoughHaloBlocks;
  };
  if (columns % 128 == 0 && enough(Many{})) return f(Many{});
  if (enough(Few{})) return f(Few{});
  f(Small{});
}

template <class Tile, class Image, class Filters, class Output>
void launch_halo(Stream& stream, int N, const Image& image, const Filters& filters,
                 const Output& output) {
  const HaloSizes sizes(Tile{}, N, image.H, image.W, filters.columns);
  const int64_t blocks =
      pixel_tiles<Tile>(N, image.H, image.W) * ceil_div(filters.columns, Tile::BN);
  ENSURE(blocks <= INT32_MAX, "conv2d: ", blocks, " blocks");
  launch<conv_halo_kernel<Tile, Image, Filters, Output>>(
      {cuda_stream(stream), dim3(unsigned(blocks)), dim3(Tile::kThreads),
       sizeof(HaloShared<Tile, Filters::kAlongDepth>)},
      image, filters, sizes, output);
}

template <class Image, class Filters, class Output>
void run_halo(Stream& stream, int N, const Image& image, const Filters& filters,
              const Output& output) {
  if (N == 0) return;
  with_halo_tile(N, image.H, image.W, filters.columns, [&](auto tile) {
    launch_halo<decltype(tile)>(stream, N, image, filters, output);
  });
}

inline constexpr int64_t kWgradBlocks = 128;

template <class Image>
void run_halo_wgrad(Stream& stream, int N, const Image& image, const Tensor& dy, Grad dw, Grad db) {
  const auto run = [&](auto tile) {
    using Tile = decltype(tile);
    const int K = int(dw.tensor.dim(0)), C = int(dw.tensor.dim(3));
    const int64_t tiles = pixel_tiles<Tile>(N, image.H, image.W);
    const int64_t blocks = ceil_div(K, Tile::BM) * ceil_div(C, Tile::BN);
    const int64_t wanted = std::clamp<int64_t>(ceil_div(kWgradBlocks, blocks), 1, tiles);
    const int64_t part = ceil_div(tiles, wanted), parts = ceil_div(tiles, part);
    ENSURE(tiles <= INT32_MAX && blocks <= INT32_MAX, "conv2d: ", tiles, " tiles");
    // One part is the result; more are added in order.
    Tensor sums = dw.tensor, bias_sums = db.tensor;
    if (parts > 1) sums = Tensor::empty(stream, {parts, dw.tensor.numel()}, DType::f32);
    if (parts > 1 && db) bias_sums = Tensor::empty(stream, {parts, K}, DType::f32);
    launch<conv_halo_wgrad_kernel<Tile, Image>>(
        {cuda_stream(stream), dim3(unsigned(blocks), 1, unsigned(parts)), dim3(Tile::kThreads),
         sizeof(WgradShared<Tile>)},
        image, HaloSizes(tile, N, image.H, image.W, C),
        WgradArgs{dy.data<bf16>(), K, C, int(tiles), int(part), sums.data<float>(),
                  data_or_null<float>(bias_sums), parts == 1 && dw.mode == GradMode::Accumulate,
                  parts == 1 && db.mode == GradMode::Accumulate});
    if (parts == 1) return;
    db ? sum_parts(stream, sums, dw, bias_sums, db) : sum_parts(stream, sums, dw);
  };
  if (image.W > 8)
    run(WgradTile<1, 16>{});
  else
    run(WgradTile<2, 8>{});
}

}  // namespace tessera::TESSERA_CUDA::conv
