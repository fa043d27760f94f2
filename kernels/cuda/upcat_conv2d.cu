// conv2d over x = concat(upsample(low), skip), which is never made. In bf16 a 3x3 filter works in
// its sub-pixel form (conv_phase.h): low's share by 2x2 filters, skip's as it is. Other filters and
// types read low and skip where they would read x (forward, the filter's gradient); a 1x1 filter's
// data gradient for low comes from the 2x2 sums of dy.
#include <array>

#include "kernels/cuda/conv_launch.h"

namespace tessera::TESSERA_CUDA {
namespace {

using conv::Image;
using conv::Sizes;

// The convolution over x, for skip [N,H,W,B] and w [K,R,R,A+B].
Sizes sizes_of(const Shape& skip, const Shape& w) {
  const int pad = int(w[1] / 2);
  return Sizes(ConvProblem::of({1, pad, pad}, {skip[0], skip[1], skip[2], w[3]}, w));
}

template <class T>
Image<T> image_of(const Tensor& x) {
  return {x.data<T>(), int(x.dim(1)), int(x.dim(2)), int(x.dim(3))};
}

// Calls f(image, whether packs of 16 bytes fit it).
template <class T, class F>
void with_image(const Tensor& low, const Tensor& skip, const F& f) {
  const conv::UpcatImage<T> image{low.data<T>(),    skip.data<T>(),  int(skip.dim(1)),
                                  int(skip.dim(2)), int(low.dim(3)), int(skip.dim(3))};
  f(image,
    packs_fit<T, kPack<T>>(image.A, image.low) && packs_fit<T, kPack<T>>(image.B, image.skip));
}

// Whether both parts and the filter are made of packs for halo tiles.
bool phases_fit(Stream& stream, const Sizes& s, const Tensor& low, const Tensor& skip,
                const Tensor& y) {
  return y.dtype() == DType::bf16 && conv::has_halo_kernels(stream, s) &&
         !conv::is_tiny(s.H / 2, s.W / 2) && packs_fit<bf16, 8>(low.dim(3), low.data<bf16>()) &&
         packs_fit<bf16, 8>(skip.dim(3), skip.data<bf16>()) &&
         packs_fit<bf16, 8>(s.K, y.data<bf16>());
}

Tensor phases_of(Stream& stream, const Tensor& w, const FilterForms& forms, int64_t A) {
  return conv::form_of(forms.phases, [&] {
    Tensor phases = Tensor::empty(stream, {w.dim(0), 4, 4, A}, w.dtype());
    upcat_phases(stream, std::array{PhasedFilter{w, phases}});
    return phases;
  });
}
Tensor turned_phases_of(Stream& stream, const Tensor& w, const FilterForms& forms, int64_t A) {
  return conv::form_of(forms.turned_phases, [&] {
    return conv::turned_of(stream, phases_of(stream, w, forms, A), {}, A);
  });
}

// A thread has the nine taps of one k and a of one of the filters.
template <class T>
struct SumTaps {
  static constexpr size_t kMostFilters = 16;
  struct Filter {
    const T* w;
    bf16* phases;
    Divisor by_A{1};
    int64_t A, row;  // channels of phases and of w
    int64_t end;     // threads of this filter and those before
  };
  Filter filters[kMostFilters];

  __device__ void operator()(int64_t i) const {
    int number = 0;
    int64_t k = i;
    for (; i >= filters[number].end; ++number) k = i - filters[number].end;
    const Filter& f = filters[number];
    const int64_t a = f.by_A.divide(k);
    float taps[3][3];
    for (int r = 0; r < 3; ++r)
      for (int s = 0; s < 3; ++s) taps[r][s] = to_float(f.w[(k * 9 + 3 * r + s) * f.row + a]);
    // Phase (p,q), tap (u,v): rows u ? 1+p .. 2 : 0 .. p of the filter, and columns alike.
    TESSERA_UNROLL
    for (int tap = 0; tap < 16; ++tap) {
      const int p = tap / 8, q = tap / 4 % 2, u = tap / 2 % 2, v = tap % 2;
      float sum = 0;
      TESSERA_UNROLL
      for (int r = 0; r < 3; ++r) {
        TESSERA_UNROLL
        for (int s = 0; s < 3; ++s)
          if ((r + 1 - p) / 2 == u && (s + 1 - q) / 2 == v) sum += taps[r][s];
      }
      f.phases[(k * 16 + tap) * f.A + a] = from_float<bf16>(sum);
    }
  }
};

template <class T>
void sum_taps(Stream& stream, std::span<const PhasedFilter> filters) {
  SumTaps<T> taps{};
  int64_t threads = 0;
  for (size_t i = 0; i < filters.size(); ++i) {
    const Tensor& w = filters[i].w;
    Tensor phases = filters[i].phases;
    const int64_t A = phases.dim(3);
    threads += w.dim(0) * A;
    taps.filters[i] = {w.data<T>(), phases.data<bf16>(), Divisor(A), A, w.dim(3), threads};
  }
  for_each(stream, threads, taps);
}

// dw = or += what the phases' gradients say, which are sums of parts: a block adds up those of all
// 16 taps of one k and some neighbouring a (SumParts, whose columns are these), and each tap of w
// collects the four sums that it is part of.
struct FoldArgs {
  SumParts sums;  // [parts,K,16,A]
  float* dw;      // [K,3,3,row]
  int A;
  int64_t row;
  Divisor32 by_blocks;  // of one k
  bool accumulate;

  FoldArgs(const Tensor& parts, Grad to)
      : sums(parts_of(parts, nullptr, 1, 0, to.mode)),
        dw(to.tensor.data<float>()),
        A(int(parts.dim(3))),
        row(to.tensor.dim(3)),
        by_blocks(1),
        accumulate(to.mode == GradMode::Accumulate) {
    sums.split(4, kSumThreads / 16 / kLeastColumns, kSumThreads / 16);
    const int64_t of_k = ceil_div(A / 4, 1 << sums.log_columns);
    by_blocks = Divisor32(int(of_k));
    sums.blocks = int(parts.dim(1) * of_k);
  }
  static constexpr int kLeastColumns = 4;  // 64 bytes
};

__global__ void __launch_bounds__(kSumThreads, 4) fold_parts_kernel(FoldArgs f) {
  ptx::begin_kernel();
  auto& of = shared_memory<RangeSums<4>>().of;  // [range][tap][column]
  const int thread = int(threadIdx.x), log = f.sums.log_columns, columns = 1 << log;
  const int tap = (thread >> log) % 16, range = thread >> (log + 4);
  int k = int(blockIdx.x);
  const int first = f.by_blocks.divide(k) * columns * 4, a = first + thread % columns * 4;
  float sums[4] = {};
  if (a < f.A) f.sums.add_range((int64_t(k) * 16 + tap) * f.A + a, range, sums);
  Pack<float, 4>::of(sums).store(of[thread].values);
  __syncthreads();
  if (range == 0) {
    for (int from = thread + 16 * columns; from < kSumThreads; from += 16 * columns)
      for (int j = 0; j < 4; ++j) sums[j] += of[from][j];
    Pack<float, 4>::of(sums).store(of[thread].values);
  }
  __syncthreads();
  for (int i = thread; i < 9 * 2 * columns; i += kSumThreads) {
    const int pair = i % (2 * columns), to = i / (2 * columns), r = to / 3, s = to % 3;
    if (first + 2 * pair >= f.A) continue;
    const auto sum = [&](int p, int q, int j) {
      const int from = (2 * p + q) * 4 + (r + 1 - p) / 2 * 2 + (s + 1 - q) / 2;
      return of[from * columns + pair / 2].values[pair % 2 * 2 + j];
    };
    float two[2];
    for (int j = 0; j < 2; ++j)
      two[j] = (sum(0, 0, j) + sum(0, 1, j)) + (sum(1, 0, j) + sum(1, 1, j));
    put_pack(f.dw + (int64_t(k) * 9 + to) * f.row + first + 2 * pair, Pack<float, 2>::of(two),
             f.accumulate);
  }
}

// Calls f(tile), of pixels 2 apart, for images H x W: the phases are four images of half their
// size.
template <class F>
void with_phase_tile(int N, int H, int W, int columns, int depth, const F& f) {
  ConvTile tile = default_tile({false, 4 * N, H / 2, W / 2, columns, depth});
  if (N < size_of(tile).images) tile = ConvTile::k8x8x64;  // four phases, but of one image
  conv::with_halo_tile<2>(tile, f);
}

// dlow [N,H/2,W/2,A] = or += its share of dy [N,H,W,K].
void run_phase_grad(Stream& stream, int N, const conv::PhaseGradSource& source,
                    const conv::HaloImage& dlow) {
  const int h = source.dy.H / 2, w = source.dy.W / 2, A = source.filters.columns;
  const ConvTile tile = default_tile({true, N, h, w, A, source.filters.depth});
  conv::with_halo_tile(tile, [&]<class Tile>(Tile) {
    // A tile reads 4 times its pixels: where these take more shared memory than some cards have, it
    // is a small one.
    using Small = conv::HaloTile<8, 8, 64, 32, 32, 1, Tile::TN>;
    constexpr bool fits = conv::kFitsAllCards<Tile, conv::PhaseGradSource>;
    conv::launch_halo<std::conditional_t<fits, Tile, Small>>(stream, N, h, w, A, source, dlow);
  });
}

// dw of low's channels, the first ones, for dy [N,H,W,K].
void run_phase_wgrad(Stream& stream, int N, const Image<bf16>& low, const Tensor& dy, Grad dw) {
  const int K = int(dy.dim(3));
  conv::with_wgrad_tile<2>(low.W, [&](auto tile) {
    using Tile = decltype(tile);
    const conv::WgradSplit s = conv::split_of<Tile>(N, low.H, low.W, K, low.C);
    Tensor parts = Tensor::empty(stream, {s.parts, K, 16, low.C});
    conv::launch_wgrad<Tile>(
        stream, N, low, s,
        {dy.data<bf16>(), K, low.C, 0, 0, parts.data<float>(), low.C, nullptr, false, false});
    const FoldArgs fold(parts, dw);
    launch_next<fold_parts_kernel>({cuda_stream(stream), dim3(unsigned(fold.sums.blocks)),
                                    dim3(kSumThreads), sizeof(RangeSums<4>)},
                                   fold);
  });
}

// The data's gradient of a 1x1 filter: low's pixels see the sums of 2x2 pixels of dy.
void bwd_data_1x1(Stream& stream, const Tensor& dy, const Tensor& w, Grad dlow, Grad dskip) {
  const Shape &low = dlow.tensor.shape(), &skip = dskip.tensor.shape();
  const int64_t K = w.dim(0);
  Tensor sums = Tensor::empty(stream, {low[0], low[1], low[2], K}, dy.dtype());
  upsample_nearest_bwd(stream, dy, {sums});
  const auto run = [&](const Shape& x, const Tensor& up, int first, Grad dx) {
    conv::run_bwd_data(stream, Sizes(ConvProblem::of({}, x, {K, 1, 1, x[3]})), up, w, first, dx);
  };
  run(low, sums, 0, dlow);
  run(skip, dy, int(low[3]), dskip);
}

}  // namespace

void upcat_phases(Stream& stream, std::span<const PhasedFilter> filters) {
  with_storage(filters[0].w.dtype(), [&](auto zero) {
    using Taps = SumTaps<decltype(zero)>;
    for (size_t i = 0; i < filters.size(); i += Taps::kMostFilters)
      sum_taps<decltype(zero)>(
          stream, filters.subspan(i, std::min(Taps::kMostFilters, filters.size() - i)));
  });
}

void upcat_conv2d_fwd(Stream& stream, const Tensor& low, const Tensor& skip, const Tensor& w,
                      const FilterForms& forms, const Tensor& b, Tensor& y, MomentsOut* moments) {
  const Sizes s = sizes_of(skip.shape(), w.shape());
  const int N = int(skip.dim(0)), A = int(low.dim(3));
  if (phases_fit(stream, s, low, skip, y) && packs_fit<bf16, 8>(0, w.data<bf16>()) &&
      packs_fit<float, 2>(0, data_or_null<float>(b))) {
    const Tensor filters = phases_of(stream, w, forms, A);
    const conv::PhaseSource source{image_of<bf16>(low), image_of<bf16>(skip), filters.data<bf16>(),
                                   w.data<bf16>(), s.K};
    return with_phase_tile(N, s.H, s.W, s.K, s.C, [&](auto tile) {
      conv::launch_halo_fwd<decltype(tile)>(stream, N, s.H, s.W, source,
                                            {y.data<bf16>(), data_or_null<float>(b), s.K, false},
                                            moments);
    });
  }
  with_storage(low.dtype(), [&](auto zero) {
    with_image<decltype(zero)>(low, skip, [&](const auto& image, bool packed) {
      conv::run_fwd(stream, s, image, packed, w, b, y);
    });
  });
}

void upcat_conv2d_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w,
                           const FilterForms& forms, Grad dlow, Grad dskip) {
  if (w.dim(1) == 1) return bwd_data_1x1(stream, dy, w, dlow, dskip);
  const Shape& skip = dskip.tensor.shape();
  const Sizes s = sizes_of(skip, w.shape());
  const int N = int(skip[0]), A = int(dlow.tensor.dim(3)), B = int(skip[3]);
  if (phases_fit(stream, s, dlow.tensor, dskip.tensor, dy)) {
    const Tensor of_low = turned_phases_of(stream, w, forms, A),
                 of_skip = conv::turned_of(stream, w, forms.turned, B);
    const Image<bf16> up = image_of<bf16>(dy);
    run_phase_grad(stream, N, {up, {of_low.data<bf16>(), s.K, A}},
                   {dlow.tensor.data<bf16>(), nullptr, A, dlow.mode == GradMode::Accumulate});
    return conv::run_halo_grad(
        stream, N, {up, {of_skip.data<bf16>(), s.K, B}},
        {dskip.tensor.data<bf16>(), nullptr, B, dskip.mode == GradMode::Accumulate});
  }
  // So many images at a time that the gradient of their concatenation takes no more than dy.
  const int64_t part = std::max<int64_t>(1, dy.dim(0) * dy.dim(3) / w.dim(3));
  for (int64_t first = 0; first < N; first += part) {
    const int64_t n = std::min<int64_t>(part, N - first);
    const auto images = [&](const Tensor& t) {
      return t.slice(first * (t.numel() / N), {n, t.dim(1), t.dim(2), t.dim(3)});
    };
    Tensor dx = Tensor::empty(stream, {n, skip[1], skip[2], w.dim(3)}, dy.dtype());
    conv2d_bwd_data(stream, {1, 1, 1}, images(dy), w, {dx});
    concat_upsample_bwd(stream, dx, {images(dlow.tensor), dlow.mode},
                        {images(dskip.tensor), dskip.mode});
  }
}

void upcat_conv2d_bwd_weight(Stream& stream, const Tensor& low, const Tensor& skip,
                             const Tensor& dy, Grad dw, Grad db) {
  const Sizes s = sizes_of(skip.shape(), dw.tensor.shape());
  const int N = int(skip.dim(0)), A = int(low.dim(3));
  if (phases_fit(stream, s, low, skip, dy) && conv::halo_wgrad_fits(stream, s, dy, dw)) {
    conv::run_halo_wgrad(stream, N, image_of<bf16>(skip), dy, dw, A, db);
    return run_phase_wgrad(stream, N, image_of<bf16>(low), dy, dw);
  }
  with_storage(low.dtype(), [&](auto zero) {
    with_image<decltype(zero)>(low, skip, [&](const auto& image, bool packed) {
      conv::run_bwd_weight(stream, s, image, packed, dy, dw, db);
    });
  });
}

}  // namespace tessera::TESSERA_CUDA
