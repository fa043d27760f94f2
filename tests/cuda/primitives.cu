// One tiny kernel per instruction of PTX, but for those of primitives_intrinsics.cu and
// primitives_wgmma.cu: primitives.h.
#include "tests/cuda/primitives.h"

#include "kernels/cuda/ptx/approx.h"
#include "kernels/cuda/ptx/convert.h"
#include "kernels/cuda/ptx/cp_async.h"
#include "kernels/cuda/ptx/ldmatrix.h"
#include "kernels/cuda/ptx/mbarrier.h"
#include "kernels/cuda/ptx/mma.h"
#include "kernels/cuda/ptx/named_barrier.h"
#include "tests/cuda/primitive_run.h"

namespace tessera::TESSERA_CUDA {
namespace {

// in: A [16,8] by rows, B [8,8] by columns, D [16,8]; out: D. A and B are of tf32 (T = float), or
// of pairs of 16 bits.
template <class T>
struct Mma {
  static constexpr int in = 128 + 64 + 128, out = 128, threads = 32;
  __device__ static void apply(const uint32_t* in, uint32_t* out, int lane) {
    const int g = lane / 4, t = lane % 4;
    const uint32_t *A = in, *B = in + 128, *D = in + 192;
    const uint32_t a[4] = {A[g * 8 + t], A[(g + 8) * 8 + t], A[g * 8 + t + 4],
                           A[(g + 8) * 8 + t + 4]};
    const uint32_t b[2] = {B[g * 8 + t], B[g * 8 + t + 4]};
    float d[4];
    for (int i = 0; i < 4; ++i) d[i] = __uint_as_float(D[(g + i / 2 * 8) * 8 + t * 2 + i % 2]);
    if constexpr (sizeof(T) == 4)
      ptx::mma_m16n8k8_tf32(d, a, b);
    else
      ptx::mma_m16n8k16<T>(d, a, b);
    for (int i = 0; i < 4; ++i) out[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = __float_as_uint(d[i]);
  }
};

// Which NaN a conversion gives is not said: one for all.
__device__ inline uint32_t one_nan(uint32_t bits, uint32_t infinity, uint32_t nan) {
  return (bits & nan) > infinity ? nan : bits;
}
struct ToTf32 {
  __device__ static uint32_t of(float x) {
    return one_nan(ptx::to_tf32(x), 0x7F800000, 0x7FFFE000);
  }
};
struct ToBf16 {
  __device__ static uint32_t of(float x) {
    return one_nan(ptx::convert_bf16(x).bits, 0x7F80, 0x7FFF);
  }
};
struct ToBf16x2 {
  static constexpr int in = 64, out = 32, threads = 32;
  __device__ static void apply(const uint32_t* in, uint32_t* out, int lane) {
    const uint32_t pair =
        ptx::convert_bf16x2(__uint_as_float(in[lane]), __uint_as_float(in[lane + 32]));
    out[lane] = one_nan(pair & 0xFFFF, 0x7F80, 0x7FFF) | one_nan(pair >> 16, 0x7F80, 0x7FFF) << 16;
  }
};

// Subnormal results differ where hardware rounds before it flushes: these are 0 for all.
__device__ inline uint32_t number(float x) {
  return fabsf(x) <= 1.17549435e-38f ? 0u : one_nan(__float_as_uint(x), 0x7F800000, 0x7FFFFFFF);
}
struct Exp2 {
  __device__ static uint32_t of(float x) { return number(ptx::approx_exp2(x)); }
};
struct Reciprocal {
  __device__ static uint32_t of(float x) { return number(ptx::approx_reciprocal(x)); }
};

// A function of a number, in every lane.
template <class Function>
struct EachLane {
  static constexpr int in = 32, out = 32, threads = 32;
  __device__ static void apply(const uint32_t* in, uint32_t* out, int lane) {
    out[lane] = Function::of(__uint_as_float(in[lane]));
  }
};

// in: row r of matrix i, given by lane 8 i + r, at in[4 (8 i + r)]; the last row lies first in
// shared memory. out: [n,32] registers.
template <int n, bool transposed>
struct LoadMatrix {
  static constexpr int in = 128, out = 32 * n, threads = 32;
  __device__ static void apply(const uint32_t* in, uint32_t* out, int lane) {
    Rows& rows = shared_memory<Rows>();
    uint32_t* mine = rows.words[31 - lane];
    for (int i = 0; i < 4; ++i) mine[i] = in[lane * 4 + i];
    __syncthreads();
    uint32_t r[n];
    if constexpr (n == 1) transposed ? ptx::ldmatrix_x1_trans(r, mine) : ptx::ldmatrix_x1(r, mine);
    if constexpr (n == 2) transposed ? ptx::ldmatrix_x2_trans(r, mine) : ptx::ldmatrix_x2(r, mine);
    if constexpr (n == 4) transposed ? ptx::ldmatrix_x4_trans(r, mine) : ptx::ldmatrix_x4(r, mine);
    for (int i = 0; i < n; ++i) out[i * 32 + lane] = r[i];
  }
};

// in: [n,32] registers; out: the rows of all lanes, zeros where nothing was stored.
template <int n, bool transposed>
struct StoreMatrix {
  static constexpr int in = 32 * n, out = 128, threads = 32;
  __device__ static void apply(const uint32_t* in, uint32_t* out, int lane) {
    Rows& rows = shared_memory<Rows>();
    uint32_t* mine = rows.words[31 - lane];
    for (int i = 0; i < 4; ++i) mine[i] = 0;
    __syncthreads();
    uint32_t r[n];
    for (int i = 0; i < n; ++i) r[i] = in[i * 32 + lane];
    if constexpr (n == 1) transposed ? ptx::stmatrix_x1_trans(mine, r) : ptx::stmatrix_x1(mine, r);
    if constexpr (n == 2) transposed ? ptx::stmatrix_x2_trans(mine, r) : ptx::stmatrix_x2(mine, r);
    if constexpr (n == 4) transposed ? ptx::stmatrix_x4_trans(mine, r) : ptx::stmatrix_x4(mine, r);
    __syncthreads();
    for (int i = 0; i < 4; ++i) out[lane * 4 + i] = mine[i];
  }
};

// Lane l copies l % (size + 1) bytes and zeros behind them. out: what each lane got.
template <int size>
struct CopyAsync {
  static constexpr int in = 128, out = 32 * size / 4, threads = 32;
  __device__ static void apply(const uint32_t* in, uint32_t* out, int lane) {
    Rows& rows = shared_memory<Rows>();
    uint32_t* mine = rows.words[lane];
    const int bytes = lane % (size + 1);
    if constexpr (size == 4) ptx::cp_async4(mine, in + lane * 4, bytes);
    if constexpr (size == 8) ptx::cp_async8(mine, in + lane * 4, bytes);
    if constexpr (size == 16) ptx::cp_async16(mine, in + lane * 4, bytes);
    ptx::cp_async_wait_all();
    __syncthreads();
    for (int i = 0; i < size / 4; ++i) out[lane * (size / 4) + i] = mine[i];
  }
};

// A pipeline of three stages, through which eight rounds of 32 words pass; out: their running sums,
// made by another lane than the one that copied.
struct CopyGroups {
  static constexpr int in = 256, out = 256, threads = 32;
  struct Shared {
    uint32_t stages[3][32];
  };
  __device__ static void apply(const uint32_t* in, uint32_t* out, int lane) {
    Shared& shared = shared_memory<Shared>();
    for (int round = 0; round < 2; ++round) {
      ptx::cp_async4(&shared.stages[round][lane], in + round * 32 + lane);
      ptx::cp_async_commit();
    }
    uint32_t sum = 0;
    for (int round = 0; round < 8; ++round) {
      ptx::cp_async_wait<1>();
      __syncthreads();
      if (round + 2 < 8)
        ptx::cp_async4(&shared.stages[(round + 2) % 3][lane], in + (round + 2) * 32 + lane);
      ptx::cp_async_commit();
      sum += shared.stages[round % 3][31 - lane];
      out[round * 32 + lane] = sum;
    }
  }
};

// The first warp writes, the second reads what the first wrote, for four phases. Bytes: the first
// thread announces them, others deliver them.
template <bool bytes>
struct Barrier {
  static constexpr int in = 128, out = 128, threads = 64;
  struct Shared {
    ptx::Mbarrier full, empty;
    uint32_t words[32];
  };
  __device__ static void apply(const uint32_t* in, uint32_t* out, int thread) {
    Shared& shared = shared_memory<Shared>();
    if (thread == 0) {
      ptx::mbarrier_init(&shared.full, bytes ? 33 : 32);
      ptx::mbarrier_init(&shared.empty, 32);
    }
    __syncthreads();
    for (int phase = 0; phase < 4; ++phase)
      if (thread < 32)
        write(shared, in[phase * 32 + thread], phase, thread);
      else
        out[phase * 32 + thread - 32] = read(shared, phase, thread - 32);
    __syncthreads();
    if (thread < 2) ptx::mbarrier_invalidate(thread ? &shared.full : &shared.empty);
  }
  __device__ static void write(Shared& shared, uint32_t word, int phase, int lane) {
    ptx::mbarrier_wait(&shared.empty, (phase + 1) % 2);
    shared.words[lane] = word;
    if constexpr (bytes) {
      if (lane == 0) ptx::mbarrier_arrive_expect_tx(&shared.full, 128);
      ptx::mbarrier_arrive(&shared.full);
      ptx::mbarrier_complete_tx(&shared.full, 4);
    } else {
      ptx::mbarrier_arrive(&shared.full);
    }
  }
  __device__ static uint32_t read(Shared& shared, int phase, int lane) {
    if constexpr (bytes)
      while (!ptx::mbarrier_try_wait(&shared.full, phase % 2)) {
      }
    else
      while (!ptx::mbarrier_test_wait(&shared.full, phase % 2)) {
      }
    const uint32_t word = shared.words[31 - lane];
    ptx::mbarrier_arrive(&shared.empty);
    return word;
  }
};

// The first warp makes, the other two take: two named barriers, at which the makers wait for room
// and the takers for words.
struct NamedBarriers {
  static constexpr int in = 128, out = 256, threads = 96;
  __device__ static void apply(const uint32_t* in, uint32_t* out, int thread) {
    Rows& rows = shared_memory<Rows>();
    const int lane = thread % 32, warp = thread / 32;
    for (int round = 0; round < 4; ++round)
      if (warp == 0) {
        rows.words[lane][0] = in[round * 32 + lane];
        ptx::named_barrier_arrive(1, 96);
        ptx::named_barrier_sync(2, 96);
      } else {
        ptx::named_barrier_sync(1, 96);
        out[round * 64 + thread - 32] = rows.words[31 - lane][0];
        ptx::named_barrier_sync(2, 96);
      }
  }
};

}  // namespace

const std::vector<PrimitiveKernel>& primitive_kernels() {
  static const auto all = [] {
    std::vector<PrimitiveKernel> all = {
        kernel<Mma<bf16>>("mma.m16n8k16.bf16"),
        kernel<Mma<ptx::f16>>("mma.m16n8k16.f16"),
        kernel<Mma<float>>("mma.m16n8k8.tf32"),
        kernel<EachLane<ToTf32>>("cvt.rna.tf32"),
        kernel<EachLane<ToBf16>>("cvt.rn.bf16"),
        kernel<ToBf16x2>("cvt.rn.bf16x2"),
        kernel<EachLane<Exp2>>("ex2.approx.ftz"),
        kernel<EachLane<Reciprocal>>("rcp.approx.ftz"),
        kernel<LoadMatrix<1, false>>("ldmatrix.x1"),
        kernel<LoadMatrix<2, false>>("ldmatrix.x2"),
        kernel<LoadMatrix<4, false>>("ldmatrix.x4"),
        kernel<LoadMatrix<1, true>>("ldmatrix.x1.trans"),
        kernel<LoadMatrix<2, true>>("ldmatrix.x2.trans"),
        kernel<LoadMatrix<4, true>>("ldmatrix.x4.trans"),
        kernel<StoreMatrix<1, false>>("stmatrix.x1"),
        kernel<StoreMatrix<2, false>>("stmatrix.x2"),
        kernel<StoreMatrix<4, false>>("stmatrix.x4"),
        kernel<StoreMatrix<1, true>>("stmatrix.x1.trans"),
        kernel<StoreMatrix<2, true>>("stmatrix.x2.trans"),
        kernel<StoreMatrix<4, true>>("stmatrix.x4.trans"),
        kernel<CopyAsync<4>>("cp.async.4"),
        kernel<CopyAsync<8>>("cp.async.8"),
        kernel<CopyAsync<16>>("cp.async.16"),
        kernel<CopyGroups>("cp.async groups"),
        kernel<Barrier<false>>("mbarrier"),
        kernel<Barrier<true>>("mbarrier bytes"),
        kernel<NamedBarriers>("bar.sync"),
    };
    add_intrinsics(all);
    add_wgmma_kernels(all);
    return all;
  }();
  return all;
}

}  // namespace tessera::TESSERA_CUDA
