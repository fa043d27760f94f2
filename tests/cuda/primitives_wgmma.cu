// wgmma with operands of all layouts that kernels use.
#include "kernels/cuda/ptx/fence.h"
#include "kernels/cuda/ptx/wgmma.h"
#include "tests/cuda/primitive_run.h"

namespace tessera::TESSERA_CUDA {
namespace {

using ptx::Layout;

// Of `size` rows of A or columns of B, 16 deep; strides are not the least that there could be.
template <int size, Layout layout, bool across>
struct Operand {
  static constexpr int kLeading = layout == Layout::Plain && !across ? size / 8 * 144 + 32
                                  : layout == Layout::Plain          ? 128
                                  : layout == Layout::Swizzle128     ? 2048
                                                                     : 0;
  static constexpr int kStride = layout == Layout::Plain        ? (across ? 272 : 144)
                                 : layout == Layout::Swizzle128 ? 1024
                                                                : 512;
  alignas(1024) unsigned char bytes[size / 8 * 512 + 1024];

  __device__ static int place(int x, int k) {
    if (layout == Layout::Plain)
      return x / 8 * kStride + k / 8 * kLeading +
             (across ? k % 8 * 16 + x % 8 * 2 : x % 8 * 16 + k % 8 * 2);
    if (layout == Layout::Swizzle64)
      return x / 8 * 512 + x % 8 * 64 + (k / 8 ^ x % 8 / 2) * 16 + k % 8 * 2;
    return x / 64 * kLeading + k / 8 * 1024 + k % 8 * 128 + (x % 64 / 8 ^ k % 8) * 16 + x % 8 * 2;
  }
  // pairs [size,8]
  __device__ void fill(const uint32_t* pairs, int thread) {
    for (int i = thread; i < size * 16; i += 128)
      *reinterpret_cast<uint16_t*>(bytes + place(i / 16, i % 16)) =
          uint16_t(pairs[i / 2] >> i % 2 * 16);
  }
  __device__ ptx::SharedMatrix matrix() const { return {bytes, kLeading, kStride, layout}; }
};

// A in registers.
struct Fragment {};

// in: A [64,8] pairs by rows, B [N,8] pairs by columns, D [64,N]; out: D.
template <int N, class A, Layout b_layout, bool b_across>
struct GroupMma {
  static constexpr int in = 64 * 8 + N * 8 + 64 * N, out = 64 * N, threads = 128;
  struct Shared {
    A a;
    Operand<N, b_layout, b_across> b;
  };
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
    if constexpr (std::is_same_v<A, Fragment>)
      ptx::wgmma<N, b_across>(d, fragment, shared.b.matrix());
    else
      ptx::wgmma<N, b_across>(d, shared.a.matrix(), shared.b.matrix());
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    for (int j = 0; j < N / 8; ++j)
      for (int i = 0; i < 4; ++i) out[at(j, i)] = __float_as_uint(d[j][i]);
  }
};

}  // namespace

void add_wgmma_kernels(std::vector<PrimitiveKernel>& all) {
  using enum Layout;
  using PlainA = Operand<64, Plain, false>;
  all.push_back(kernel<GroupMma<64, PlainA, Swizzle64, false>>("wgmma.n64 plain, 64"));
  all.push_back(kernel<GroupMma<128, PlainA, Swizzle64, false>>("wgmma.n128 plain, 64"));
  all.push_back(kernel<GroupMma<64, PlainA, Swizzle128, true>>("wgmma.n64 plain, 128"));
  all.push_back(kernel<GroupMma<128, PlainA, Swizzle128, true>>("wgmma.n128 plain, 128"));
  all.push_back(
      kernel<GroupMma<64, Operand<64, Swizzle64, false>, Swizzle64, false>>("wgmma.n64 64, 64"));
  all.push_back(kernel<GroupMma<64, Fragment, Plain, true>>("wgmma.n64 registers, plain"));
  all.push_back(kernel<GroupMma<128, Fragment, Plain, true>>("wgmma.n128 registers, plain"));
  all.push_back(kernel<GroupMma<128, Fragment, Swizzle128, true>>("wgmma.n128 registers, 128"));
}

}  // namespace tessera::TESSERA_CUDA
