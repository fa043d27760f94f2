// From a convolution's matrix product to a launch: which mainloop, which tile, how many parts of
// the depth.
#pragma once

#include "kernels/cuda/conv_halo_norm.h"
#include "kernels/cuda/conv_operands.h"
#include "kernels/cuda/gemm_mma.h"
#include "kernels/cuda/gemm_simt.h"
#include "kernels/cuda/sum_parts.h"

namespace tessera::TESSERA_CUDA::conv {

using gemm::Epilogue;
using gemm::GemmSizes;
using gemm::MmaTile;
using gemm::SimtTile;

template <class A, class B>
struct Product {
  A a;
  B b;
  int rows, columns, depth;
  bool packed;  // packs of 16 bytes fit both operands
};

// ---- The tables of tiles. Numbers of blocks are those that keep a large GPU busy, not those of
// the one at hand: how a sum is split, and so its bits, is the same on all.
inline constexpr int64_t kEnoughBlocks = 256;
inline constexpr int64_t kLeastDepth = 512;  // that is worth a block of its own

using SmallMma = MmaTile<64, 64, 32, 32>;
using SmallSimt = SimtTile<32, 32, 4, 4>;

template <class Tile>
int64_t tiles_of(int rows, int columns) {
  return ceil_div(rows, Tile::BM) * ceil_div(columns, Tile::BN);
}

// fwd and bwd_data: many rows (pixels); the larger the tile the better, if enough blocks are left.
struct PixelTiles {
  template <class F>
  static void mma(int rows, int columns, const F& f) {
    using Large = MmaTile<128, 128, 64, 32>;
    using Medium = MmaTile<128, 64, 64, 32>;
    if (columns > 64 && tiles_of<Large>(rows, columns) >= kEnoughBlocks) return f(Large{});
    if (tiles_of<Medium>(rows, columns) >= kEnoughBlocks) return f(Medium{});
    f(SmallMma{});
  }
  template <class F>
  static void simt(int rows, int columns, const F& f) {
    using Large = SimtTile<128, 64, 8, 8>;
    if (columns > 32 && tiles_of<Large>(rows, columns) >= kEnoughBlocks) return f(Large{});
    f(SmallSimt{});
  }
};

// bwd_weight: the depth (pixels) is split until there are enough blocks; tiles as large as the
// filter.
struct FilterTiles {
  template <class F>
  static void mma(int rows, int columns, const F& f) {
    if (columns <= 64) return f(SmallMma{});
    if (rows <= 64) return f(MmaTile<64, 128, 32, 64>{});
    f(MmaTile<128, 128, 64, 32>{});
  }
  template <class F>
  static void simt(int rows, int columns, const F& f) {
    if (rows <= 32 || columns <= 32) return f(SmallSimt{});
    f(SimtTile<64, 128, 8, 8>{});
  }
};

// Calls f(tile, whether operands are packed) with the tile for a product on this stream's device.
// Elements that do not make packs are loaded one by one: that is slow whatever the tile.
template <class Table, class A, class B, class F>
void with_tile(Stream& stream, const Product<A, B>& p, const F& f) {
  constexpr bool bf16_storage = sizeof(typename A::Element) == 2;
  const auto packed = [&](auto tile) { f(tile, std::true_type{}); };
  if (has_mma(stream.device().info()) && (bf16_storage || stream.math == Math::tf32))
    return p.packed ? Table::mma(p.rows, p.columns, packed) : f(SmallMma{}, std::false_type{});
  p.packed ? Table::simt(p.rows, p.columns, packed) : f(SmallSimt{}, std::false_type{});
}

// ---- Launches. D goes to epilogue.out, in `splits` parts of depth_per_split.
template <class Tile, bool packed, class A, class B, class Out>
void launch_product(Stream& stream, const Product<A, B>& p, int splits, int depth_per_split,
                    Epilogue<Out> epilogue) {
  const int64_t blocks = tiles_of<Tile>(p.rows, p.columns);
  ENSURE(blocks <= INT32_MAX && splits <= 65535, "conv2d: ", blocks, " blocks, ", splits, " parts");
  const GemmSizes sizes{p.rows, p.columns, p.depth, int(ceil_div(p.columns, Tile::BN)),
                        depth_per_split};
  ENSURE(!epilogue.bias || !epilogue.accumulate, "conv2d: a bias where D is added");
  epilogue.packs = packs_fit<Out, kPack<Out>>(epilogue.layout.stride, epilogue.out) &&
                   packs_fit<float, 4>(0, epilogue.bias);
  const auto start = [&]<auto kernel>(size_t shared) {
    launch_next<kernel>({cuda_stream(stream), dim3(unsigned(blocks), 1, unsigned(splits)),
                         dim3(Tile::kThreads), shared},
                        p.a, p.b, sizes, epilogue);
  };
  if constexpr (Tile::kTensorCores) {
    const bool async = sizeof(typename A::Element) == 2 && has_wgmma(stream.device().info());
    start.template operator()<gemm::gemm_mma_kernel<Tile, A, B, Out, packed>>(
        async ? sizeof(gemm::MmaShared<Tile, A, B, true>)
              : sizeof(gemm::MmaShared<Tile, A, B, false>));
  } else {
    start.template operator()<gemm::gemm_simt_kernel<Tile, A, B, Out, packed>>(
        sizeof(gemm::SimtShared<Tile>));
  }
}

// D in one part, as the epilogue says.
template <class A, class B, class T>
void run_pixels(Stream& stream, const Product<A, B>& p, const Epilogue<T>& epilogue) {
  with_tile<PixelTiles>(stream, p, [&](auto tile, auto packed) {
    launch_product<decltype(tile), packed.value, A, B, T>(stream, p, 1, p.depth, epilogue);
  });
}
// out = D + bias, or out += D.
template <class A, class B, class T>
void run_pixels(Stream& stream, const Product<A, B>& p, const float* bias, T* out, GradMode mode) {
  run_pixels(stream, p, Epilogue<T>{out, bias, mode == GradMode::Accumulate, {int64_t(p.columns)}});
}

// [parts,K]: the sums of dy [N,P,Q,K] over parts of n, p, q, which add up to a bias's gradient,
// where products do not sum A's rows. In conv2d_bwd_weight.cu.
Tensor sums_of_pixels(Stream& stream, const Tensor& dy);

// Whether kernels multiply bf16 by tensor cores: then they also sum A's rows.
template <class T>
bool sums_rows(Stream& stream) {
  return sizeof(T) == 2 && has_mma(stream.device().info());
}

// dw = D, and db the sums of A's rows, dy's channels. The depth is split into parts, which are
// added in order.
template <class A, class B>
void run_filters(Stream& stream, const Product<A, B>& p, const Tensor& dy, Grad dw, Grad db) {
  const bool with_rows = db && sums_rows<typename A::Element>(stream);
  with_tile<FilterTiles>(stream, p, [&](auto tile, auto packed) {
    using Tile = decltype(tile);
    constexpr int BK = Tile::template BK<typename A::Element>;
    const int64_t wanted = std::min(ceil_div(kEnoughBlocks, tiles_of<Tile>(p.rows, p.columns)),
                                    ceil_div(p.depth, kLeastDepth));
    const int part = int(ceil_div(ceil_div(p.depth, wanted), BK) * BK);
    const int parts = int(ceil_div(p.depth, part));
    const auto run = [&](Grad w, Grad b) {
      Epilogue<float> to{
          w.tensor.data<float>(), nullptr, w.mode == GradMode::Accumulate, {p.columns}};
      to.row_sums = data_or_null<float>(b.tensor);
      to.add_row_sums = b.mode == GradMode::Accumulate;
      launch_product<Tile, packed.value, A, B, float>(stream, p, parts, part, to);
    };
    Tensor sums, row_sums;
    if (parts > 1) {
      sums = Tensor::empty(stream, Shape{parts, p.rows, p.columns});
      if (with_rows) row_sums = Tensor::empty(stream, Shape{parts, p.rows});
      run({sums}, {row_sums});
    } else {
      run(dw, with_rows ? db : Grad{});
    }
    if (db && !with_rows) row_sums = sums_of_pixels(stream, dy);
    sum_parts(stream, parts_of(sums, dw), parts_of(row_sums, db));
  });
}

// ---- Products whose input is an Image or an UpcatImage. packed: packs fit the image.
template <class Image>
void run_fwd(Stream& stream, const Sizes& s, const Image& image, bool packed, const Tensor& w,
             const Tensor& b, Tensor& y) {
  using T = typename Image::Element;
  const T* filters = w.data<T>();
  const Product<Windows<Image>, Filters<T>> p{
      {s, image}, {filters, s.K, s.taps_c()},
      s.y_pixels, s.K,
      s.taps_c(), packed && packs_fit<T, kPack<T>>(0, filters)};
  run_pixels(stream, p, data_or_null<float>(b), y.data<T>(), GradMode::Overwrite);
}

// dx = or += for the C channels of w's from `first` on, where dx is one of several that were
// concatenated (conv2d_bwd_data.cu).
void run_bwd_data(Stream& stream, const Sizes& s, const Tensor& dy, const Tensor& w, int first,
                  Grad dx);

template <class Image>
void run_bwd_weight(Stream& stream, const Sizes& s, const Image& image, bool packed,
                    const Tensor& dy, Grad dw, Grad db) {
  using T = typename Image::Element;
  const T* up = dy.data<T>();
  const Product<Pixels<T>, WindowsAcross<Image>> p{{up, s.y_pixels, s.K},
                                                   {{s, image}},
                                                   s.K,
                                                   s.taps_c(),
                                                   s.y_pixels,
                                                   packed && packs_fit<T, kPack<T>>(s.K, up)};
  run_filters(stream, p, dy, dw, db);
}

}  // namespace tessera::TESSERA_CUDA::conv
