// mma.sync, ldmatrix and stmatrix of the host model: where each element lies, exhaustively, and
// what is done wrong. Random numbers: test_ptx_primitives.cpp.
#include <catch2/catch.hpp>

#include "kernels/cuda/ptx/convert.h"
#include "kernels/cuda/ptx/ldmatrix.h"
#include "kernels/cuda/ptx/mma.h"
#include "tests/simt_run.h"

using namespace tessera;
using namespace tessera::simt;

namespace {

// The registers of one lane.
struct Fragments {
  uint32_t a[4], b[2];
  float d[4];
};

template <class T>
void mma_kernel(Fragments* lanes) {
  Fragments& mine = lanes[threadIdx.x];
  if constexpr (std::is_same_v<T, float>)
    ptx::mma_m16n8k8_tf32(mine.d, mine.a, mine.b);
  else
    ptx::mma_m16n8k16<T>(mine.d, mine.a, mine.b);
}

template <class T>
constexpr int kDepth = std::is_same_v<T, float> ? 8 : 16;
constexpr uint32_t bits_of_one(bf16) { return 0x3F80; }
constexpr uint32_t bits_of_one(ptx::f16) { return 0x3C00; }
constexpr uint32_t bits_of_one(float) { return 0x3F800000; }

// A one in element [row][k] of A, [k][column] of B, said as the PTX ISA's formulas for the row and
// column of fragment element i of a lane do, read backwards.
template <class T>
void put_a(std::vector<Fragments>& lanes, int row, int k) {
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < (kDepth<T> == 16 ? 8 : 4); ++i) {
      const int group = lane >> 2, thread = lane % 4;
      int at_row, at_k;
      if (kDepth<T> == 16) {
        at_row = (i >= 0 && i < 2) || (i >= 4 && i < 6) ? group : group + 8;
        at_k = thread * 2 + (i & 1) + (i < 4 ? 0 : 8);
      } else {
        at_row = i == 0 || i == 2 ? group : group + 8;
        at_k = i == 0 || i == 1 ? thread : thread + 4;
      }
      if (at_row != row || at_k != k) continue;
      if (kDepth<T> == 16)
        lanes[lane].a[i / 2] |= bits_of_one(T{}) << 16 * (i % 2);
      else
        lanes[lane].a[i] = bits_of_one(T{});
    }
}
template <class T>
void put_b(std::vector<Fragments>& lanes, int k, int column) {
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < (kDepth<T> == 16 ? 4 : 2); ++i) {
      const int group = lane >> 2, thread = lane % 4;
      const int at_k =
          kDepth<T> == 16 ? thread * 2 + (i & 1) + (i < 2 ? 0 : 8) : thread + (i == 0 ? 0 : 4);
      if (group != column || at_k != k) continue;
      if (kDepth<T> == 16)
        lanes[lane].b[i / 2] |= bits_of_one(T{}) << 16 * (i % 2);
      else
        lanes[lane].b[i] = bits_of_one(T{});
    }
}
float d_at(const Fragments* lanes, int row, int column) {
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      if ((i < 2 ? lane >> 2 : (lane >> 2) + 8) == row && lane % 4 * 2 + (i & 1) == column)
        return lanes[lane].d[i];
  return NAN;
}

// Every pair of a one in A and a one in B: D is one where they meet.
template <class T>
void check_fragments() {
  SimtRun simt;
  Fragments* const device = simt.allocate<Fragments>(32);
  int wrong = 0;
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < kDepth<T>; ++k)
      for (int column = 0; column < 8; ++column) {
        // The one of B is in the right place and in the next one.
        for (const int other : {k, (k + 1) % kDepth<T>}) {
          std::vector<Fragments> lanes(32);
          put_a<T>(lanes, row, k);
          put_b<T>(lanes, other, column);
          for (int i = 0; i < 128; ++i) lanes[i / 4].d[i % 4] = 5;
          std::copy(lanes.begin(), lanes.end(), device);
          simt.run<mma_kernel<T>>(32, 0, device);
          for (int i = 0; i < 16; ++i)
            for (int j = 0; j < 8; ++j)
              wrong += d_at(device, i, j) != (i == row && j == column && other == k ? 6.0f : 5.0f);
        }
      }
  CHECK(wrong == 0);
}

struct Matrices {
  alignas(16) uint16_t rows[33][8];
};

// Loads, and stores what it loaded somewhere else with the other orientation.
void transpose_kernel(uint16_t* out) {
  struct Two {
    Matrices from, to;
  };
  Two& shared = shared_memory<Two>();
  const int lane = int(threadIdx.x);
  for (int i = 0; i < 8; ++i) shared.from.rows[lane][i] = uint16_t(lane * 8 + i);
  __syncthreads();
  uint32_t r[4];
  ptx::ldmatrix_x4_trans(r, shared.from.rows[lane]);
  ptx::stmatrix_x4(shared.to.rows[lane], r);
  __syncthreads();
  for (int i = 0; i < 8; ++i) out[lane * 8 + i] = shared.to.rows[lane][i];
}

void misaligned_row_kernel(int lane) {
  Matrices& shared = shared_memory<Matrices>();
  uint32_t r[4];
  ptx::ldmatrix_x4(r, &shared.rows[threadIdx.x][int(threadIdx.x) == lane ? 1 : 0]);
}
// Only lanes 0 to 7 give rows that are used.
void unused_rows_kernel() {
  Matrices& shared = shared_memory<Matrices>();
  uint32_t r[1];
  ptx::ldmatrix_x1(r, &shared.rows[threadIdx.x][threadIdx.x < 8 ? 0 : 1]);
}
void global_row_kernel(uint32_t* global) {
  uint32_t r[4];
  ptx::ldmatrix_x4(r, global + threadIdx.x * 4);
}
void unwritten_operand_kernel(float* out) {
  Matrices& shared = shared_memory<Matrices>();
  for (int i = 0; i < 8; ++i) shared.rows[threadIdx.x][i] = 0;
  __syncthreads();
  uint32_t a[4];
  const uint32_t b[2] = {0, 0};
  float d[4] = {};
  ptx::ldmatrix_x4(a, shared.rows[threadIdx.x + 1]);  // the last row was never written
  ptx::mma_m16n8k16<bf16>(d, a, b);
  out[threadIdx.x] = d[0];
}
void some_lanes_kernel(Fragments* lanes) {
  if (threadIdx.x != 7) ptx::mma_m16n8k16<bf16>(lanes->d, lanes->a, lanes->b);
}
template <bool pair>
void convert_kernel(const float* x, uint32_t* y) {
  *y = pair ? ptx::convert_bf16x2(0, *x) : ptx::convert_bf16(*x).bits;
}

}  // namespace

TEST_CASE("mma fragments lie where the PTX ISA says", "[ptx][slow]") {
  check_fragments<bf16>();
  check_fragments<ptx::f16>();
  check_fragments<float>();
}

TEST_CASE("ldmatrix.trans and stmatrix transpose every matrix", "[ptx]") {
  const ScopedOptions restore(options());
  for (const Order order : {Order::Ascending, Order::Descending, Order::Random}) {
    options().order = order;
    SimtRun simt;
    uint16_t* const out = simt.allocate<uint16_t>(256);
    simt.run<transpose_kernel>(32, 2 * sizeof(Matrices), out);
    for (int i = 0; i < 256; ++i) CHECK(out[i] == i / 64 * 64 + i % 8 * 8 + i % 64 / 8);
  }
}

TEST_CASE("bank conflicts of a matrix's rows are counted", "[ptx]") {
  alignas(128) static unsigned char memory[8 * 144];
  const auto passes = [&](int pitch, int rows) {
    return simt::passes_of_matrix([&](int row) { return memory + row % rows * pitch; });
  };
  CHECK(passes(16, 8) == 1);
  CHECK(passes(144, 8) == 1);
  CHECK(passes(32, 8) == 2);
  CHECK(passes(128, 8) == 8);
  CHECK(passes(128, 2) == 2);  // the same row again costs nothing
}

TEST_CASE("what ldmatrix must not be given", "[ptx]") {
  const ScopedOptions restore(options());
  SimtRun simt;
  for (const int lane : {0, 5, 31}) {
    const std::string fault = simt.fault_of<misaligned_row_kernel>(32, sizeof(Matrices), lane);
    CHECK(contains(fault, "misaligned address: ldmatrix.x4 at "));
    CHECK(contains(fault, "misaligned_row_kernel"));
    CHECK(contains(fault, concat("block (0,0,0), thread (", lane, ",0,0)")));
  }
  CHECK(simt.fault_of<unused_rows_kernel>(32, sizeof(Matrices)) == "");
  options().profile = profile_of(75);
  CHECK(contains(simt.fault_of<unused_rows_kernel>(32, sizeof(Matrices)),
                 "misaligned address: ldmatrix.x1 at "));
  CHECK(
      contains(simt.fault_of<global_row_kernel>(32, sizeof(Matrices), simt.allocate<uint32_t>(128)),
               "not in this block's shared memory"));
}

TEST_CASE("an operand that was never written is found in mma", "[ptx]") {
  const ScopedOptions restore(options());
  options().trap_uninitialised = true;
  SimtRun simt;
  const std::string fault =
      simt.fault_of<unwritten_operand_kernel>(32, sizeof(Matrices), simt.allocate<float>(32));
  CHECK(contains(fault, "arithmetic on an uninitialised value"));
  CHECK(contains(fault, "unwritten_operand_kernel, block (0,0,0), thread ("));
}

TEST_CASE("mma takes a whole warp", "[ptx]") {
  SimtRun simt;
  const auto lanes = simt.allocate(std::vector<Fragments>(1));
  CHECK(contains(simt.fault_of<some_lanes_kernel>(32, 0, lanes),
                 "mma.sync.m16n8k16.bf16 is never completed"));
  CHECK(contains(simt.fault_of<mma_kernel<bf16>>(16, 0, simt.allocate(std::vector<Fragments>(16))),
                 "mma.sync.m16n8k16.bf16 in a warp of fewer than 32 threads"));
}

TEST_CASE("conversion to bf16 keeps NaN and notices what was never written", "[ptx]") {
  const ScopedOptions restore(options());
  options().trap_uninitialised = true;
  SimtRun simt;
  uint32_t* const out = simt.allocate<uint32_t>(1);
  for (const float x : {NAN, -NAN}) {
    simt.run<convert_kernel<false>>(1, 0, simt.allocate(std::vector<float>{x}), out);
    CHECK(std::isnan(to_float(bf16{uint16_t(*out)})));
    simt.run<convert_kernel<true>>(1, 0, simt.allocate(std::vector<float>{x}), out);
    CHECK(std::isnan(to_float(bf16{uint16_t(*out >> 16)})));
  }
  CHECK(contains(simt.fault_of<convert_kernel<false>>(1, 0, simt.allocate<float>(1), out),
                 "arithmetic on an uninitialised value"));
  CHECK(contains(simt.fault_of<convert_kernel<true>>(1, 0, simt.allocate<float>(1), out),
                 "arithmetic on an uninitialised value"));
}
