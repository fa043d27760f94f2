// Halo tiles whose results a GroupNorm reads next: while a block has them in shared memory, it
// takes the sums over pixels for which a pass of its own would read them again.
//
// A thread has the pixels of PackOfTile. Sums are added up by lanes, then by warps, in a fixed
// order, and written for each tile; norm.h has what follows.
#pragma once

#include "kernels/cuda/conv_halo_launch.h"
#include "kernels/cuda/norm.h"

namespace tessera::TESSERA_CUDA::conv {

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
    if (threadIdx.x >= PackOfTile<Tile>::kPacks || k >= K || first.n >= N) return;
    constexpr int kApart = Tile::kApart;
    const int rectangle = first.h / kApart / Tile::TH * across + first.w / kApart / Tile::TW;
    const int part = (rectangle * kApart + first.h % kApart) * kApart + first.w % kApart;
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
    const auto count = [](int tile, int left) {
      return min(tile, (left + Tile::kApart - 1) / Tile::kApart);
    };
    const float pixels =
        float(count(Tile::TH, sizes.H - first.h) * count(Tile::TW, sizes.W - first.w));
    for (int n = 0; n < Tile::TN; ++n) {
      const auto pivot = Pack<bf16, 8>::load(&results.out[n * Tile::TH * Tile::TW][mine.x]);
      float mean[8] = {}, m2[8] = {};
      mine.for_pixels(sizes, first, n, [&](int m, int) {
        const auto y = Pack<bf16, 8>::load(&results.out[m][mine.x]);
        for (int j = 0; j < 8; ++j) mean[j] += y[j] - pivot[j];
      });
      mine.add_up(mean, results.sums[0]);
      for (int j = 0; j < 8; ++j) mean[j] /= pixels;
      mine.for_pixels(sizes, first, n, [&](int m, int) {
        const auto y = Pack<bf16, 8>::load(&results.out[m][mine.x]);
        for (int j = 0; j < 8; ++j) {
          const float deviation = (y[j] - pivot[j]) - mean[j];
          m2[j] += deviation * deviation;
        }
      });
      mine.add_up(m2, results.sums[1]);
      for (int j = 0; j < 8; ++j) mean[j] += pivot[j];
      to.put<Tile>({first.n + n, first.h, first.w}, column + mine.x, mean, m2);
    }
  }
};

// dy = sums, and the sums of dz and of dz xhat: dz = dy act'(z), dy as stored, with the z that a
// GroupNorm computes from x (norm.h), all of whose tensors are at addresses of packs.
template <Activation act>
struct HaloNormGrad {
  static constexpr int kBlocks = 0;
  NormArgs<bf16> in;
  bf16* dy;
  TileSums to;

  template <int n>
  __device__ __forceinline__ NoPairs before(const HaloSizes&, const Place&, int) const {
    return {};
  }
  template <class Tile>
  __device__ __forceinline__ void store(const HaloSizes& sizes, const Place& first, int column,
                                        HaloResults<Tile>& results) const {
    for (int n = 0; n < Tile::TN; ++n) store_image(sizes, first, n, column, results);
  }
  // Of the tile's n-th image.
  template <class Tile>
  __device__ __forceinline__ void store_image(const HaloSizes& sizes, const Place& first, int n,
                                              int column, HaloResults<Tile>& results) const {
    const PackOfTile<Tile> mine;
    const int c = column + mine.x;
    float sum[8] = {}, product[8] = {};
    if (c < to.K && first.n + n < to.N) {
      const Affine<8> z(in, first.n + n, c, to.K);
      const int64_t begin = mine.first_pixel(sizes, first, n) * to.K + c;
      const bf16* const from = in.x + begin;
      bf16* const up_to = dy + begin;
      mine.for_pixels(sizes, first, n, [&](int m, int further) {
        const int64_t i = int64_t(further) * to.K;
        const auto x = Pack<bf16, 8>::load(from + i);
        const auto up = Pack<bf16, 8>::load(&results.out[m][mine.x]);
        up.store(up_to + i);
        for (int j = 0; j < 8; ++j) {
          const float dz = up[j] * Act<act>::template derivative<bf16>(z(j, x[j]));
          sum[j] += dz;
          product[j] += dz * (x[j] - z.mean[j]);
        }
      });
      in.for_groups<8>(in.moments_of(first.n + n), c,
                       [&](int j, float, float rstd) { product[j] *= rstd; });
    }
    mine.add_up(sum, results.sums[0]);
    mine.add_up(product, results.sums[1]);
    to.put<Tile>({first.n + n, first.h, first.w}, c, sum, product);
  }
};

// launch_halo with an output that takes sums: output(sums) makes it, then(partial, tiles) goes on.
template <class Tile, class Source, class Output, class Then>
void launch_halo_sums(Stream& stream, int N, int H, int W, int columns, const Source& source,
                      const Output& output, const Then& then) {
  const TileParts tiles(H, W, Tile::TH, Tile::TW, Tile::kApart);
  Tensor partial = Tensor::empty(stream, {2, N, tiles.count(), columns});
  launch_halo<Tile>(stream, N, H, W, columns, source, output(TileSums(tiles, partial)));
  then(partial, tiles);
}

// y [N,H,W,K], and its moments where they are asked for.
template <class Tile, class Source>
void launch_halo_fwd(Stream& stream, int N, int H, int W, const Source& source, const HaloImage& y,
                     MomentsOut* moments) {
  if (!moments) return launch_halo<Tile>(stream, N, H, W, y.K, source, y);
  launch_halo_sums<Tile>(
      stream, N, H, W, y.K, source,
      [&](const TileSums& to) {
        return HaloMoments{y, to};
      },
      [&](const Tensor& partial, const TileParts& tiles) {
        merge_moments(stream, tiles, moments->spec, partial, moments->moments);
      });
  moments->made = true;
}

}  // namespace tessera::TESSERA_CUDA::conv
