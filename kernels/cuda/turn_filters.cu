// Filters as their data gradients read them: a transpose of [K, C] for each tap, all filters in one
// launch. A block has 64 k by 64 c of a tap, through shared memory, so that reads follow c and
// writes follow k, in packs.
#include <algorithm>

#include "kernels/cuda/kernel.h"

namespace tessera::TESSERA_CUDA {
namespace {

constexpr int kThreads = 256, kSide = 64;
constexpr size_t kMostFilters = 32;  // of a launch

template <class T>
struct TurnArgs {
  struct Filter {
    const T* w;  // from the first channel on that is wanted
    T* turned;
    int64_t C;  // of w
    int K, taps, channels;
    int end;  // blocks of this filter and those before
  };
  Filter filters[kMostFilters];
};

// Lines that begin one bank further each.
template <class T>
struct TurnShared {
  T values[kSide][kSide + 4 / sizeof(T)];
};

// V: packs of channels and of k.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) turn_filters_kernel(TurnArgs<T> a) {
  ptx::begin_kernel();
  constexpr int kPacks = kSide / V, kRows = kThreads / kPacks, kRounds = kSide / kRows;
  auto& shared = shared_memory<TurnShared<T>>();
  int block = int(blockIdx.x), filter = 0, begin = 0;
  for (; block >= a.filters[filter].end; ++filter) begin = a.filters[filter].end;
  const auto& f = a.filters[filter];
  block -= begin;
  const int down = (f.K + kSide - 1) / kSide, tap = block % f.taps;
  const int k = block / f.taps % down * kSide, c = block / f.taps / down * kSide;
  const int x = int(threadIdx.x) % kPacks * V, y = int(threadIdx.x) / kPacks;
  Pack<T, V> rows[kRounds];  // on their way together
  for (int i = 0; i < kRounds; ++i)
    if (const int j = y + i * kRows; k + j < f.K && c + x < f.channels)
      rows[i] = Pack<T, V>::load(f.w + (int64_t(k + j) * f.taps + tap) * f.C + (c + x));
  for (int i = 0; i < kRounds; ++i)
    for (int e = 0; e < V; ++e) shared.values[y + i * kRows][x + e] = rows[i].values[e];
  __syncthreads();
  for (int i = 0; i < kRounds; ++i)
    if (const int j = y + i * kRows; c + j < f.channels && k + x < f.K) {
      Pack<T, V> turned;
      for (int e = 0; e < V; ++e) turned.values[e] = shared.values[x + e][j];
      turned.store(f.turned + (int64_t(c + j) * f.taps + (f.taps - 1 - tap)) * f.K + (k + x));
    }
}

template <class T>
void turn(Stream& stream, std::span<const TurnedFilter> filters) {
  TurnArgs<T> args{};
  int64_t blocks = 0;
  bool packs = true;
  for (size_t i = 0; i < filters.size(); ++i) {
    const Tensor& w = filters[i].w;
    Tensor turned = filters[i].turned;
    const int64_t K = w.dim(0), taps = w.dim(1) * w.dim(2), C = w.dim(3), channels = turned.dim(0);
    blocks += ceil_div(K, kSide) * ceil_div(channels, kSide) * taps;
    ENSURE(blocks <= INT32_MAX && std::max({K, taps, channels}) <= INT32_MAX, "turn_filters: w is ",
           w.shape());
    auto& f = args.filters[i];
    f.end = int(blocks);
    if (turned.numel() > 0) {
      f = {w.data<T>() + (C - channels),
           turned.data<T>(),
           C,
           int(K),
           int(taps),
           int(channels),
           f.end};
      packs = packs && K % kPack<T> == 0 && C % kPack<T> == 0 &&
              packs_fit<T, kPack<T>>(channels, f.w, f.turned);
    }
  }
  if (blocks == 0) return;
  const Launch how{cuda_stream(stream), dim3(unsigned(blocks)), dim3(kThreads),
                   sizeof(TurnShared<T>)};
  with_pack<kPack<T>>(packs, [&](auto V) { launch_next<turn_filters_kernel<T, V>>(how, args); });
}

}  // namespace

void turn_filters(Stream& stream, std::span<const TurnedFilter> filters) {
  with_storage(filters[0].w.dtype(), [&](auto zero) {
    for (size_t i = 0; i < filters.size(); i += kMostFilters)
      turn<decltype(zero)>(stream, filters.subspan(i, std::min(kMostFilters, filters.size() - i)));
  });
}

}  // namespace tessera::TESSERA_CUDA
