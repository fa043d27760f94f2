// Halo tiles whose results a GroupNorm reads next: while a block has them in shared memory, it
// takes the sums over pixels for which a pass of its own would read them again.
//
// A thread has one pack of 8 channels and every kRows-th pixel of the tile. Sums are added up by
// lanes, then by warps, in a fixed order, and written for each tile; norm.h has what follows.
#pragma once

#include "kernels/cuda/conv_halo_launch.h"
#include "kernels/cuda/norm.h"

namespace tessera::TESSERA_CUDA::conv {

// The part of a thread.
template <class Tile>
struct PackOfTile {
  static constexpr int kPacks = Tile::BN / 8, kRows = Tile::kThreads / kPacks;
  static_assert(kPacks <= 32 && 32 % kPacks == 0);
  int x = int(threadIdx.x) % kPacks * 8, row = int(threadIdx.x) / kPacks;

  // f(its m, its place) for every pixel of the thread that is in the image.
  template <class F>
  __device__ __forceinline__ void for_pixels(const HaloSizes& sizes, const Place& first,
                                             const F& f) const {
    for (int m = row; m < Tile::BM; m += kRows) {
      const Place at = pixel_of<Tile>(first, m);
      if (is_inside(sizes, at)) f(m, at);
    }
  }
  // Every thread gets the sums of its channels over the tile. All threads must come.
  __device__ __forceinline__ void add_up(float (&values)[8], float (*scratch)[Tile::BN]) const {
    const int warp = int(threadIdx.x) / 32;
    for (int j = 0; j < 8; ++j)
      for (int lanes = kPacks; lanes < 32; lanes *= 2)
        values[j] += __shfl_xor_sync(0xFFFFFFFF, values[j], lanes);
    if (threadIdx.x % 32 < kPacks)
      for (int j = 0; j < 8; ++j) scratch[warp][x + j] = values[j];
    __syncthreads();
    for (int j = 0; j < 8; ++j) {
      values[j] = scratch[0][x + j];
      for (int w = 1; w < Tile::kThreads / 32; ++w) values[j] += scratch[w][x + j];
    }
  }
};

// Where a tile's partial sums go: partial [2,N,parts,K].
struct TileSums {
  float* partial;
  int N, K, across, parts;

  TileSums(const TileParts& tiles, Tensor& partial)
      : partial(partial.data<float>()),
        N(int(partial.dim(1))),
        K(int(partial.dim(3))),
        across(tiles.across()),
        parts(tiles.count()) {}

  template <class Tile>
  __device__ __forceinline__ void put(const Place& first, int k, const float (&a)[8],
                                      const float (&b)[8]) const {
    if (threadIdx.x >= PackOfTile<Tile>::kPacks || k >= K) return;
    const int part = first.h / Tile::TH * across + first.w / Tile::TW;
    float* const to = partial + (int64_t(first.n) * parts + part) * K + k;
    for (int j = 0; j < 8; ++j) {
      to[j] = a[j];
      to[j + int64_t(N) * parts * K] = b[j];
    }
  }
};

// y = sums + bias, and the mean and M2 of every channel of y, as stored, in the tile: in two steps,
// and less one of the values, so that a large mean costs nothing.
struct HaloMoments : HaloImage {
  static constexpr int kBlocks = 2;
  TileSums to;

  template <class Tile>
  __device__ __forceinline__ void store(const HaloSizes& sizes, const Place& first, int column,
                                        HaloResults<Tile>& results) const {
    HaloImage::store(sizes, first, column, results);
    const PackOfTile<Tile> mine;
    const auto pivot = Pack<bf16, 8>::load(&results.out[0][mine.x]);
    float mean[8] = {}, m2[8] = {};
    mine.for_pixels(sizes, first, [&](int m, const Place&) {
      const auto y = Pack<bf16, 8>::load(&results.out[m][mine.x]);
      for (int j = 0; j < 8; ++j) mean[j] += y[j] - pivot[j];
    });
    mine.add_up(mean, results.sums[0]);
    const float pixels = float(min(Tile::TH, sizes.H - first.h) * min(Tile::TW, sizes.W - first.w));
    for (int j = 0; j < 8; ++j) mean[j] /= pixels;
    mine.for_pixels(sizes, first, [&](int m, const Place&) {
      const auto y = Pack<bf16, 8>::load(&results.out[m][mine.x]);
      for (int j = 0; j < 8; ++j) {
        const float deviation = (y[j] - pivot[j]) - mean[j];
        m2[j] += deviation * deviation;
      }
    });
    mine.add_up(m2, results.sums[1]);
    for (int j = 0; j < 8; ++j) mean[j] += pivot[j];
    to.put<Tile>(first, column + mine.x, mean, m2);
  }
};

// dy = sums, and the sums of dz and of dz xhat: dz = dy gelu'(z), dy as stored, with the z that a
// GroupNorm computes from x (norm.h).
template <GeluForm form>
struct HaloNormGrad {
  static constexpr int kBlocks = 0;
  NormArgs<bf16> in;
  bf16* dy;
  TileSums to;

  __device__ __forceinline__ Two before(const HaloSizes&, const Place&, int) const { return {}; }
  template <class Tile>
  __device__ __forceinline__ void store(const HaloSizes& sizes, const Place& first, int column,
                                        HaloResults<Tile>& results) const {
    const PackOfTile<Tile> mine;
    const int c = column + mine.x;
    float sum[8] = {}, product[8] = {};
    if (c < to.K) {
      const Affine<8> z(in, first.n, c, to.K);
      mine.for_pixels(sizes, first, [&](int m, const Place& at) {
        const int64_t i = pixel_number(at, sizes.H, sizes.W) * to.K + c;
        const auto x = Pack<bf16, 8>::load(in.x + i);
        const auto up = Pack<bf16, 8>::load(&results.out[m][mine.x]);
        up.store(dy + i);
        for (int j = 0; j < 8; ++j) {
          const float dz = up[j] * gelu_derivative_of<form>(z(j, x[j]));
          sum[j] += dz;
          product[j] += dz * (x[j] - z.mean[j]);
        }
      });
      const int64_t group = int64_t(first.n) * (to.K / in.per_group);
      for (int j = 0; j < 8; ++j)
        product[j] *= in.moments[2 * (group + (c + j) / in.per_group) + 1];
    }
    mine.add_up(sum, results.sums[0]);
    mine.add_up(product, results.sums[1]);
    to.put<Tile>(first, c, sum, product);
  }
};

// run_halo with an output that takes sums: output(sums) makes it, then(partial, tiles) goes on.
template <class Image, class Filters, class Output, class Then>
void run_halo_sums(Stream& stream, int N, const Image& image, const Filters& filters,
                   const Output& output, const Then& then) {
  with_halo_tile(N, image.H, image.W, filters.columns, [&](auto tile) {
    using Tile = decltype(tile);
    const TileParts tiles{image.H, image.W, Tile::TH, Tile::TW};
    Tensor partial = Tensor::empty(stream, {2, N, tiles.count(), filters.columns});
    launch_halo<Tile>(stream, N, image, filters, output(TileSums(tiles, partial)));
    then(partial, tiles);
  });
}

}  // namespace tessera::TESSERA_CUDA::conv
