// What a step of the convolutions' mainloops takes: its products, its copies, and both, as the
// kernels have them (filters' gradients without their warps that only copy); and what copies of 16
// KB take by where they go. All data are zeros that lie in the L2 cache.
#include <algorithm>
#include <numeric>

#include "kernels/cuda/conv_halo_wgrad.h"
#include "kernels/cuda/conv_phase.h"
#include "tests/cuda/primitive_run.h"

namespace tessera::TESSERA_CUDA {
namespace {

using conv::HaloSource, conv::HaloTile, conv::Image, conv::PhaseSource, conv::WgradTile;

// Of a step. Products alone are of zeros in shared memory, with all waits of the mainloop.
enum class Part { Products, Copies, Both };

// ---- What the blocks of a kernel do, step by step, without end:
//
//   Shared, kThreads, kStages    of a block
//   kBlocks                      that registers must leave room for on a multiprocessor
//   place()                      where a block works
//   start(), multiply()          of the mainloop's step
//   total(sums)                  so that all sums are needed
//   products(), bytes()          of a step: clocks by the data sheet, and what is copied

struct NoSums {
  static constexpr bool kAsync = true;
  static constexpr int kGroups = 1;
};

// 16 KB a step to `planes` planes; one is contiguous. A pixel has `pitch` packs in memory, of which
// the first ones are read. Blocks read the same steps, each from another one on.
template <int planes>
struct PackCopies {
  static constexpr int kThreads = 256, kBlocks = 1, kPacks = 1024, kSteps = 512;
  static constexpr int kStages = 5;  // three are on their way
  using Sums = NoSums;
  struct Shared {
    conv::PixelPlanes<kPacks / planes, 8 * planes> stages[kStages];
  };
  const bf16* from;
  int pitch;

  __device__ __forceinline__ int place() const { return int(blockIdx.x) * 37; }
  __device__ __forceinline__ void start(Shared& shared, int first, int step) const {
    auto& to = shared.stages[step % kStages].elements;
    const bf16* const pixels =
        from + int64_t((first + step) % kSteps) * (kPacks / planes) * pitch * 8;
    TESSERA_UNROLL
    for (int i = 0; i < kPacks; i += kThreads) {
      const int pack = i + int(threadIdx.x), pixel = pack / planes, chunk = pack % planes;
      ptx::cp_async16(to[chunk][pixel], pixels + (pixel * pitch + chunk) * 8);
    }
  }
  double products() const { return 0; }
  double bytes() const { return kPacks * 16; }
};

// Steps of a source, taps of one, and pixels that it loads.
struct StepSizes {
  int steps, taps;
  double pixels;
};
template <class Tile>
StepSizes step_sizes(const HaloSource& source) {
  using Planes = conv::HaloPlanes<Tile::TN, Tile::TH, Tile::TW, 32>;
  return {source.filters.depth / 32 * 3, 3, Planes::kPixels / 3.0};
}
// With channels of low or of skip alone.
template <class Tile>
StepSizes step_sizes(const PhaseSource& source) {
  using Low = decltype(PhaseSource::Low<Tile>::input);
  using Skip = decltype(PhaseSource::Skip<Tile>::input);
  if (source.low.C > 0) return {source.low.C / 32, 4, double(Low::kPixels)};
  return {source.skip.C / 32 * 3, 3, double(Skip::kPixels)};
}

// i modulo a number that is known at the launch.
__device__ __forceinline__ int modulo(const Divisor32& divisor, int i) { return divisor.divide(i); }

// Steps of a block of conv_halo_kernel, with rings for `blocks` on a multiprocessor. Behind the
// last one that ends where the ring does they begin anew.
template <class Tile, class Source, int blocks>
struct HaloSteps {
  static constexpr int kThreads = Tile::kThreads, kBlocks = blocks;
  static constexpr int kStages = conv::HaloShared<Tile, Source, true, blocks>::kStages;
  using Sums = gemm::GroupProducts<Tile>;
  using Shared = typename Source::template Shared<Tile, kStages>;
  static constexpr int ring() {
    if constexpr (requires { Shared::kInputs; }) return std::lcm(kStages, 3 * Shared::kInputs);
    return kStages;
  }
  Source source;
  StepSizes of;
  conv::HaloSizes sizes;
  Divisor32 tiles, steps;

  HaloSteps(const Source& source, int N, int H, int W, int columns)
      : source(source),
        of(step_sizes<Tile>(source)),
        sizes(Tile{}, N, H, W, columns),
        tiles(int(ceil_div(N, Tile::TN) * ceil_div(H, Tile::TH * Tile::kApart) *
                  ceil_div(W, Tile::TW * Tile::kApart)) *
              Tile::kApart * Tile::kApart),
        steps(of.steps / ring() * ring()) {
    ENSURE(of.steps >= ring(), "a ring of ", ring(), " steps for ", of.steps);
  }

  __device__ __forceinline__ conv::BlockPlace place() const {
    int block = int(blockIdx.x);
    const int column = sizes.column_tiles.divide(block) * Tile::BN;
    return {sizes.N, sizes.tile<Tile>(modulo(tiles, block)), column};
  }
  __device__ __forceinline__ void start(Shared& shared, const conv::BlockPlace& at,
                                        int step) const {
    source.start(shared, at, modulo(steps, step));
  }
  __device__ __forceinline__ void multiply(const Shared& shared, int step, Sums& sums) const {
    source.multiply(shared, modulo(steps, step), sums);
  }
  static __device__ __forceinline__ float total(const Sums& sums) {
    float total = 0;
    sums.each_row([&](int, int, auto pairs, const auto& pair) {
      for (int j = 0; j < pairs; ++j) total += pair(j)[0] + pair(j)[1];
    });
    return total;
  }
  double products() const { return Tile::BM * Tile::BN / 2048.0 * 32 * of.taps; }
  double bytes() const { return (of.taps * Tile::BN + of.pixels) * 32 * sizeof(bf16); }
};

// Steps of a block of filters' gradients of K by C, copied by `threads`. A block has some of both
// and begins at a tile of its own.
template <class Tile, int threads>
struct WgradSteps {
  static constexpr int kThreads = threads, kBlocks = 1;
  static constexpr int kStages = conv::WgradShared<Tile, true>::kStages;
  using Sums = conv::GroupWgrad<Tile>;
  using Shared = conv::WgradShared<Tile, true>;
  struct At {
    int k, c, phase, first;
  };
  Image<bf16> image;
  conv::HaloSizes sizes;
  int tiles, tiles_per_part;
  Divisor32 all_tiles;
  conv::WgradArgs args{};

  WgradSteps(const Image<bf16>& image, const bf16* dy, int N, int K, int blocks)
      : image(image),
        sizes(Tile{}, N, image.H, image.W, image.C),
        tiles(
            int(ceil_div(N, Tile::TN) * ceil_div(image.H, Tile::TH) * ceil_div(image.W, Tile::TW))),
        all_tiles(tiles) {
    args.dy = dy, args.K = K, args.C = image.C;
    const int kinds = int(ceil_div(image.C, Tile::BN)) * Tile::kPhases * (K / Tile::BM);
    tiles_per_part = tiles / std::max(1, blocks / kinds);
  }

  __device__ __forceinline__ At place() const {
    int block = int(blockIdx.x);
    const int c = sizes.column_tiles.divide(block) * Tile::BN, phase = block % Tile::kPhases;
    block /= Tile::kPhases;
    const int rows = args.K / Tile::BM;
    return {block % rows * Tile::BM, c, phase, block / rows * tiles_per_part};
  }
  __device__ __forceinline__ void start(Shared& shared, const At& at, int step) const {
    auto& stage = shared.stages[step % kStages];
    const conv::Place first = sizes.tile<Tile>(modulo(all_tiles, at.first + step));
    stage.x.template fill<threads>(
        image, sizes.N, {first.n, first.h - 1 + at.phase / 2, first.w - 1 + at.phase % 2}, at.c);
    conv::fill_dy<Tile, threads>(stage.dy, args, sizes, first, at.k, at.phase);
  }
  __device__ __forceinline__ void multiply(const Shared& shared, int step, Sums& sums) const {
    sums.multiply(shared.stages[step % kStages]);
  }
  static __device__ __forceinline__ float total(const Sums& sums) {
    float total = 0;
    sums.each_row([&](int, int, int, auto pairs, const auto& pair) {
      for (int j = 0; j < pairs; ++j) total += pair(j)[0] + pair(j)[1];
    });
    sums.each_bias([&](int, float sum) { total += sum; });
    return total;
  }
  double products() const { return Tile::kPixels * Tile::BM / 2048.0 * Tile::BN * Tile::kTaps; }
  double bytes() const {
    using Input = typename conv::WgradStage<Tile>::Input;
    return double(Input::kPixels * Tile::BN + Tile::kPixels * Tile::BM) * sizeof(bf16);
  }
};

// ---- The kernel. clocks [blocks]: of `rounds` steps.

template <Part part, class Work>
__device__ __forceinline__ void run_steps(const Work& work, int rounds, float* totals,
                                          int64_t* clocks) {
  constexpr int kStages = Work::kStages, kAhead = kStages > 2 ? kStages - 2 : 1;
  auto& shared = shared_memory<typename Work::Shared>();
  for (int i = int(threadIdx.x); i < int(sizeof shared / 4); i += Work::kThreads)
    reinterpret_cast<uint32_t*>(&shared)[i] = 0;
  ptx::fence_proxy_async();
  __syncthreads();
  const auto at = work.place();
  using Sums = std::conditional_t<part == Part::Copies, NoSums, typename Work::Sums>;
  Sums sums;
  gemm::multiply_steps<kStages, Sums>(
      0, kStages + rounds,
      [&](int step) {
        // Beside step kStages. To memory: a register would have to hold it to the end.
        if (step == kStages + kAhead && threadIdx.x == 0) clocks[blockIdx.x] = -clock_now();
        if constexpr (part != Part::Products) work.start(shared, at, step);
      },
      [&](int step) {
        if constexpr (part != Part::Copies) work.multiply(shared, step, sums);
      });
  if (threadIdx.x == 0) clocks[blockIdx.x] += clock_now();
  if constexpr (part != Part::Copies)
    totals[blockIdx.x * Work::kThreads + threadIdx.x] = Work::total(sums);
}

template <Part part, class Work>
__global__ void __launch_bounds__(Work::kThreads, Work::kBlocks)
    mainloop_rate_kernel(Work work, int rounds, float* totals, int64_t* clocks) {
  if (ptx::has_wgmma()) run_steps<part>(work, rounds, totals, clocks);
}

// ---- The table.

struct Meter {
  // Of images, and of what is multiplied by them: little enough for the L2 cache.
  static constexpr size_t kImage = size_t{16} << 20, kOther = size_t{16} << 20;

  int rounds, multiprocessors;
  OwnMemory memory{kImage + kOther};
  std::vector<Rate> rates;

  explicit Meter(int rounds) : rounds(rounds) {
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
    multiprocessors = properties.multiProcessorCount;
    const OwnStream stream;
    CUDA_CHECK(cudaMemsetAsync(memory.it, 0, kImage + kOther, stream.it));
    CUDA_CHECK(cudaStreamSynchronize(stream.it));
  }
  const bf16* image() const { return static_cast<const bf16*>(memory.it); }
  const bf16* other() const { return image() + kImage / sizeof(bf16); }

  // 32 images, or as many as have a place.
  static int batch(int size, int channels) {
    return std::min(32, int(kImage / (size_t(size) * size * channels * sizeof(bf16))));
  }

  // `each` blocks on a multiprocessor share its clocks; 0: one block on one of them alone. The
  // second time all lies in the L2 cache.
  template <Part part, class Work>
  void add(const std::string& name, const Work& work, int each = 1) {
    const int blocks = each ? each * multiprocessors : 1;
    const OwnMemory totals(size_t(blocks) * Work::kThreads * sizeof(float));
    int64_t clocks = 0;
    for (int time = 0; time < 2; ++time)
      clocks = std::ranges::max(clocks_of<mainloop_rate_kernel<part, Work>>(
          blocks, blocks, Work::kThreads, sizeof(typename Work::Shared), work, rounds,
          static_cast<float*>(totals.it)));
    rates.push_back({name, double(clocks) / rounds / std::max(each, 1),
                     part == Part::Copies ? 0 : work.products(),
                     part == Part::Products ? 0 : work.bytes()});
  }
};

template <int planes>
void add_packs(Meter& meter, const std::string& name, int pitch) {
  const PackCopies<planes> copies{meter.image(), pitch};
  meter.add<Part::Copies>(name + ", one multiprocessor", copies, 0);
  meter.add<Part::Copies>(name + ", all", copies);
}

template <class Tile>
std::string tile_name() {
  return concat(Tile::TN > 1 ? concat(Tile::TN, "x") : "", Tile::TH, "x", Tile::TW, "x", Tile::BN);
}
std::string image_name(int size, int channels) {
  return concat(" of ", size, "x", size, "x", channels);
}
std::string blocks_name(int blocks) {
  return blocks == 1 ? ", 1 block" : concat(", ", blocks, " blocks");
}

// Images and results of size x size pixels.
template <class Tile, int blocks, class Source>
void add_halo(Meter& meter, const std::string& name, const Source& source, int N, int size,
              int columns, int each) {
  const HaloSteps<Tile, Source, blocks> steps(source, N, size, size, columns);
  meter.add<Part::Products>(name + ": products", steps, each);
  meter.add<Part::Copies>(name + ": copies", steps, each);
  meter.add<Part::Both>(name + ": both", steps, each);
}
template <class Tile, int blocks>
void add_windows(Meter& meter, int size, int channels, int columns, int each = blocks) {
  const HaloSource source{{meter.image(), size, size, channels},
                          {meter.other(), channels, columns}};
  const auto name = tile_name<Tile>() + image_name(size, channels) + blocks_name(each);
  add_halo<Tile, blocks>(meter, name, source, Meter::batch(size, channels), size, columns, each);
}
// The sub-pixel form over `low` channels of half the size, and over `skip` of the whole.
template <class Tile, int blocks>
void add_phases(Meter& meter, int size, int low, int skip, int columns) {
  const bf16 *const image = meter.image(), *const filters = meter.other();
  const auto add = [&](const std::string& what, int low, int skip) {
    const PhaseSource source{
        {image, size / 2, size / 2, low}, {image, size, size, skip}, filters, filters, columns};
    add_halo<Tile, blocks>(meter, tile_name<Tile>() + what + blocks_name(blocks), source,
                           Meter::batch(size, low / 4 + skip), size, columns, blocks);
  };
  add(" low" + image_name(size / 2, low), low, 0);
  add(" skip" + image_name(size, skip), 0, skip);
}

// dy has K channels, of as many pixels, or four times as many with phases.
template <class Tile>
void add_wgrad(Meter& meter, int size, int channels, int K) {
  const Image<bf16> image{meter.image(), size, size, channels};
  const auto name =
      concat("filters ", Tile::TN, "x", Tile::TW, "x", Tile::R, image_name(size, channels), ": ");
  // Blocks read all of both operands, and only a part of what others have.
  const int N = Meter::batch(size, 2 * std::max(channels, K * Tile::kPhases));
  const WgradSteps<Tile, 256> all(image, meter.other(), N, K, meter.multiprocessors);
  const WgradSteps<Tile, 128> few(image, meter.other(), N, K, meter.multiprocessors);
  meter.add<Part::Products>(name + "products", all);
  meter.add<Part::Copies>(name + "copies, 256 threads", all);
  meter.add<Part::Copies>(name + "copies, 128 threads", few);
  meter.add<Part::Both>(name + "both, 256 threads", all);
}

}  // namespace

std::vector<Rate> mainloop_rates(int rounds) {
  ENSURE(rounds >= 8, "mainloop_rates: fewer steps than rings have stages");
  Meter meter(rounds);
  add_packs<1>(meter, "16 KB in a row", 1);
  add_packs<8>(meter, "to 8 planes", 8);
  add_packs<4>(meter, "to 4 planes", 4);
  add_packs<4>(meter, "to 4 planes, 64 of 128 bytes", 8);

  // Rings of conv_halo_kernel's: for one block in grids of few, where such a kernel is.
  add_windows<HaloTile<16, 16, 64, 64, 32>, 2>(meter, 64, 128, 64, 1);
  add_windows<HaloTile<16, 16, 64, 64, 32>, 2>(meter, 64, 128, 64);
  add_windows<HaloTile<8, 16, 128, 64, 32>, 1>(meter, 32, 128, 128);
  add_windows<HaloTile<8, 16, 128, 64, 32>, 1>(meter, 16, 256, 256);
  add_windows<HaloTile<8, 16, 128, 64, 32>, 2>(meter, 32, 128, 128);
  add_windows<HaloTile<8, 8, 64, 32, 32, 1, 2>, 2>(meter, 8, 512, 512, 1);
  add_windows<HaloTile<8, 8, 64, 32, 32, 1, 2>, 2>(meter, 8, 512, 512);
  add_phases<HaloTile<16, 16, 64, 64, 32, 2>, 1>(meter, 64, 128, 64, 64);
  add_phases<HaloTile<16, 16, 64, 64, 32, 2>, 2>(meter, 64, 128, 64, 64);
  add_phases<HaloTile<8, 16, 128, 64, 32, 2>, 1>(meter, 32, 256, 128, 128);
  add_phases<HaloTile<8, 16, 128, 64, 32, 2>, 2>(meter, 32, 256, 128, 128);

  add_wgrad<WgradTile<1, 16, 3>>(meter, 64, 64, 64);
  add_wgrad<WgradTile<1, 16, 3>>(meter, 32, 128, 128);
  add_wgrad<WgradTile<1, 16, 3>>(meter, 16, 256, 256);
  add_wgrad<WgradTile<2, 8, 3>>(meter, 8, 512, 512);
  add_wgrad<WgradTile<1, 16, 2>>(meter, 32, 128, 64);
  return std::move(meter.rates);
}

}  // namespace tessera::TESSERA_CUDA
