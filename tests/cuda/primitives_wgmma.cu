// wgmma with operands of all layouts that kernels use and of others that they could, and how long
// these, the fence in front of them and the copies of their operands take.
#include <algorithm>

#include "kernels/cuda/ptx/cp_async.h"
#include "kernels/cuda/ptx/fence.h"
#include "kernels/cuda/ptx/wgmma.h"
#include "tests/cuda/primitive_run.h"

namespace tessera::TESSERA_CUDA {
namespace {

using ptx::Layout;

// Of `size` rows of A or columns of B, 16 deep; strides are not the least that there could be.
// Begins `shift` lines of a swizzled pattern behind that pattern's begin, as the windows of a tap
// would.
template <int size, Layout layout, bool across, int shift = 0>
struct Operand {
  static constexpr int kLeading = layout == Layout::Plain && !across ? size / 8 * 144 + 32
                                  : layout == Layout::Plain          ? 128
                                  : layout == Layout::Swizzle128     ? 3072
                                                                     : 0;
  static constexpr int kStride = layout == Layout::Plain        ? (across ? 272 : 144)
                                 : layout == Layout::Swizzle128 ? 1024
                                                                : 512;
  alignas(1024) unsigned char bytes[size / 8 * 512 + 2048];

  __device__ static int place(int x, int k) {
    if (layout == Layout::Plain)
      return x / 8 * kStride + k / 8 * kLeading +
             (across ? k % 8 * 16 + x % 8 * 2 : x % 8 * 16 + k % 8 * 2);
    const int line = shift + (across ? k : x);
    if (layout == Layout::Swizzle64) return line * 64 + (k / 8 ^ line % 8 / 2) * 16 + k % 8 * 2;
    return x / 64 * kLeading + line * 128 + (x % 64 / 8 ^ line % 8) * 16 + x % 8 * 2;
  }
  // pairs [size,8]
  __device__ void fill(const uint32_t* pairs, int thread) {
    for (int i = thread; i < size * 16; i += 128)
      *reinterpret_cast<uint16_t*>(bytes + place(i / 16, i % 16)) =
          uint16_t(pairs[i / 2] >> i % 2 * 16);
  }
  __device__ ptx::SharedMatrix matrix() const {
    return ptx::SharedMatrix(bytes, kLeading, kStride, layout).further(shift * (across ? 128 : 64));
  }
};

// A in registers.
struct Fragment {};

// in: A [64,8] pairs by rows, B [N,8] pairs by columns, D [64,N]; out: D.
template <int N, class A, Layout b_layout, bool b_across, int b_shift = 0>
struct GroupMma {
  static constexpr int in = 64 * 8 + N * 8 + 64 * N, out = 64 * N, threads = 128, kN = N;
  struct Shared {
    A a;
    Operand<N, b_layout, b_across, b_shift> b;
  };
  __device__ static void multiply(float (&d)[N / 8][4], const uint32_t (&fragment)[4],
                                  const Shared& shared) {
    if constexpr (std::is_same_v<A, Fragment>)
      ptx::wgmma<N, b_across>(d, fragment, shared.b.matrix());
    else
      ptx::wgmma<N, b_across>(d, shared.a.matrix(), shared.b.matrix());
  }
  __device__ static void apply(const uint32_t* in, uint32_t* out, int thread) {
    auto& shared = shared_memory<Shared>();
    if constexpr (!std::is_same_v<A, Fragment>) shared.a.fill(in, thread);
    shared.b.fill(in + 64 * 8, thread);
    ptx::fence_proxy_async();
    __syncthreads();
    const int row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
    const auto at = [&](int j, int i) { return (row + i / 2 * 8) * N + 8 * j + column + i % 2; };
    float d[N / 8][4];
    for (int j = 0; j < N / 8; ++j)
      for (int i = 0; i < 4; ++i) d[j][i] = __uint_as_float(in[64 * 8 + N * 8 + at(j, i)]);
    const uint32_t* const pairs = in + row * 8 + thread % 4;
    const uint32_t fragment[4] = {pairs[0], pairs[8 * 8], pairs[4], pairs[8 * 8 + 4]};
    ptx::wgmma_fence();
    multiply(d, fragment, shared);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    for (int j = 0; j < N / 8; ++j)
      for (int i = 0; i < 4; ++i) out[at(j, i)] = __float_as_uint(d[j][i]);
  }
};

// f<P>(name): where A is, where B is.
template <class F>
void each_group_mma(const F& f) {
  using enum Layout;
  using PlainA = Operand<64, Plain, false>;
  const auto each = [&]<int N>(const std::string& n) {
    const auto one = [&]<class P>(const char* operands) {
      f.template operator()<P>(("wgmma." + n + " " + operands).c_str());
    };
    one.template operator()<GroupMma<N, PlainA, Swizzle64, false>>("plain, 64");
    one.template operator()<GroupMma<N, PlainA, Swizzle128, true>>("plain, 128 across");
    one.template operator()<GroupMma<N, PlainA, Plain, true>>("plain, plain across");
    one.template operator()<GroupMma<N, Operand<64, Swizzle64, false>, Swizzle64, false>>("64, 64");
    one.template operator()<GroupMma<N, Operand<64, Swizzle64, false>, Swizzle128, true>>(
        "64, 128 across");
    one.template operator()<GroupMma<N, Fragment, Swizzle64, false>>("registers, 64");
    one.template operator()<GroupMma<N, Fragment, Swizzle128, true>>("registers, 128 across");
    one.template operator()<GroupMma<N, Fragment, Plain, true>>("registers, plain across");
    one.template operator()<GroupMma<N, Operand<64, Swizzle64, false, 3>, Swizzle64, false>>(
        "64 from line 3, 64");
    one.template operator()<GroupMma<N, Fragment, Swizzle128, true, 5>>(
        "registers, 128 across from line 5");
  };
  each.template operator()<64>("n64");
  each.template operator()<128>("n128");
}

// Two warpgroups multiply zeros, four products to a commit. clocks [2]: of all that a group does.
template <class P>
__global__ void product_rate_kernel(int rounds, float* sums, int64_t* clocks) {
  auto& shared = shared_memory<typename P::Shared>();
  for (int i = int(threadIdx.x); i < int(sizeof shared / 4); i += 256)
    reinterpret_cast<uint32_t*>(&shared)[i] = 0;
  ptx::fence_proxy_async();
  __syncthreads();
  float d[P::kN / 8][4] = {};
  // Zeros that the compiler does not know.
  const auto* const zeros = reinterpret_cast<const uint32_t*>(&shared) + threadIdx.x % 32;
  const uint32_t fragment[4] = {zeros[0], zeros[32], zeros[64], zeros[96]};
  const int64_t before = clock_now();
  for (int round = 0; round < rounds; ++round) {
    ptx::wgmma_fence();
    for (int i = 0; i < 4; ++i) P::multiply(d, fragment, shared);
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
  }
  ptx::wgmma_wait<0>();
  const int64_t after = clock_now();
  if (threadIdx.x % 128 == 0) clocks[threadIdx.x / 128] = after - before;
  float sum = 0;
  for (int j = 0; j < P::kN / 8; ++j)
    for (int i = 0; i < 4; ++i) sum += d[j][i];
  sums[threadIdx.x] = sum;
}

// One warp. clocks [3]: of a fence and a barrier, alone; while a copy is in flight; and of a wait
// for such a copy and a barrier.
__global__ void fence_rate_kernel(int rounds, const uint32_t* from, int64_t* clocks) {
  Rows& rows = shared_memory<Rows>();
  for (int kind = 0; kind < 3; ++kind) {
    int64_t sum = 0;
    for (int round = 0; round < rounds; ++round) {
      if (kind > 0)
        ptx::cp_async16(rows.words[threadIdx.x],
                        from + ((kind - 1) * rounds + round) * 1024 + int(threadIdx.x) * 32);
      __syncthreads();
      const int64_t before = clock_now();
      if (kind < 2)
        ptx::fence_proxy_async();
      else
        ptx::cp_async_wait_all();
      __syncthreads();
      sum += clock_now() - before;
      ptx::cp_async_wait_all();
    }
    if (threadIdx.x == 0) clocks[kind] = sum;
  }
}

// Steps of 16 KB, `ahead` of which are on their way while a block waits for one, as S - 2 are in
// the mainloop's ring of S stages. Blocks read the same `steps` steps, each from another one on.
// clocks [blocks].
template <int ahead>
__global__ void copy_rate_kernel(int rounds, const uint4* from, int steps, int64_t* clocks) {
  constexpr int kPacks = 1024, stages = ahead + 1;
  struct Ring {
    uint4 packs[stages][kPacks];
  };
  auto& ring = shared_memory<Ring>();
  const auto copy = [&](int step) {
    const auto* const at = from + int64_t((int(blockIdx.x) * 37 + step) % steps) * kPacks;
    for (int i = int(threadIdx.x); i < kPacks; i += 256)
      ptx::cp_async16(&ring.packs[step % stages][i], at + i);
    ptx::cp_async_commit();
  };
  int64_t before = 0;
  for (int step = 0; step < rounds + stages; ++step) {
    if (step == stages) before = clock_now();
    if (step >= stages - 1) ptx::cp_async_wait<stages - 2>();
    __syncthreads();
    copy(step);
  }
  if (threadIdx.x == 0) clocks[blockIdx.x] = clock_now() - before;
  ptx::cp_async_wait_all();
}

template <class P>
Rate product_rate(const std::string& name, int rounds) {
  const OwnMemory sums(256 * sizeof(float));
  const auto clocks = clocks_of<product_rate_kernel<P>>(2, 1, 256, sizeof(typename P::Shared),
                                                        rounds, static_cast<float*>(sums.it));
  // 64 x N x 16 multiply-adds, of which tensor cores do 2048 a clock (H100's data sheet).
  return {name, double(std::max(clocks[0], clocks[1])) / (8 * rounds), P::kN / 2.0};
}

// The second time `from` lies in the L2 cache.
template <int ahead>
Rate copy_rate(int rounds, const OwnMemory& from, int steps) {
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  const int blocks = properties.multiProcessorCount;
  int64_t clocks = 0;
  for (int time = 0; time < 2; ++time)
    clocks = std::ranges::max(
        clocks_of<copy_rate_kernel<ahead>>(blocks, blocks, 256, (ahead + 1) * size_t(16384), rounds,
                                           static_cast<const uint4*>(from.it), steps));
  return {concat("16 KB of L2 to each, ", ahead, " of these on their way"), double(clocks) / rounds,
          0};
}

}  // namespace

std::vector<Rate> wgmma_rates(int rounds) {
  std::vector<Rate> rates;
  each_group_mma(
      [&]<class P>(const char* name) { rates.push_back(product_rate<P>(name, rounds)); });
  const OwnMemory from(size_t(2 * rounds) * 4096);
  const auto clocks = clocks_of<fence_rate_kernel>(3, 1, 32, sizeof(Rows), rounds,
                                                   static_cast<const uint32_t*>(from.it));
  const char* const names[] = {"fence.proxy.async and a barrier", "the same, a copy in flight",
                               "a wait for such a copy and a barrier"};
  for (int i = 0; i < 3; ++i) rates.push_back({names[i], double(clocks[i]) / rounds, 0});
  constexpr int kSteps = 1024;  // 16 MB
  const OwnMemory steps(size_t(kSteps) * 16384);
  rates.push_back(copy_rate<1>(rounds, steps, kSteps));
  rates.push_back(copy_rate<2>(rounds, steps, kSteps));
  rates.push_back(copy_rate<3>(rounds, steps, kSteps));
  rates.push_back(copy_rate<4>(rounds, steps, kSteps));
  rates.push_back(copy_rate<8>(rounds, steps, kSteps));
  return rates;
}

void add_wgmma_kernels(std::vector<PrimitiveKernel>& all) {
  each_group_mma([&]<class P>(const char* name) { all.push_back(kernel<P>(name)); });
}

}  // namespace tessera::TESSERA_CUDA
