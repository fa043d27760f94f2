// The host model's warps: shuffles, votes, match and reductions against their definitions, in
// blocks with full and partial warps, masks, widths and orders.
#include <numeric>

#include "tests/simt_device.h"

namespace tessera::simt {
namespace {

// The lanes of the calling thread's warp that exist.
unsigned warp_mask() {
  const unsigned first = threadIdx.x / 32 * 32, lanes = min(32u, blockDim.x - first);
  return lanes == 32 ? ~0u : (1u << lanes) - 1;
}

struct Shuffled {
  int indexed, up, down, crosswise;
};
void shuffle_kernel(Shuffled* out, int amount, int width) {
  const int mine = 1000 + int(threadIdx.x);
  out[threadIdx.x] = {__shfl_sync(~0u, mine, amount, width),
                      __shfl_up_sync(~0u, mine, unsigned(amount), width),
                      __shfl_down_sync(~0u, mine, unsigned(amount), width),
                      __shfl_xor_sync(~0u, mine, amount, width)};
}

// Only the even lanes take part, and each half of them by itself.
void masked_kernel(unsigned* out) {
  const unsigned lane = threadIdx.x % 32;
  if (lane % 2) return;
  const unsigned mask = lane < 16 ? 0x00005555 : 0x55550000;
  out[threadIdx.x] = __shfl_sync(mask, threadIdx.x, lane < 16 ? 14 : 16);
  __syncwarp(mask);
  out[threadIdx.x] += 1000 * unsigned(__popc(__ballot_sync(mask, lane % 4 == 0)));
}

void wide_types_kernel(double* doubles, unsigned long long* longs, float2* pairs) {
  const unsigned i = threadIdx.x;
  doubles[i] = __shfl_xor_sync(~0u, i + 0.5, 1);
  longs[i] = __shfl_up_sync(~0u, (1ull << 40) + i, 1);
  pairs[i] = __shfl_sync(~0u, make_float2(float(i), -float(i)), 5);
}

struct Votes {
  unsigned ballot;
  int any, all, any_never, all_always;
  unsigned partners, equal, unequal;
  int is_equal, is_unequal;
};
void vote_kernel(Votes* out) {
  const unsigned i = threadIdx.x, mask = warp_mask();
  Votes v{};
  v.ballot = __ballot_sync(mask, i % 3 == 0);
  v.any = __any_sync(mask, i % 32 == 0);
  v.all = __all_sync(mask, i % 32 != 0);
  v.any_never = __any_sync(mask, 0);
  v.all_always = __all_sync(mask, 7);
  v.partners = __match_any_sync(mask, i % 5);
  v.equal = __match_all_sync(mask, 2.5f, &v.is_equal);
  v.unequal = __match_all_sync(mask, static_cast<unsigned long long>(i), &v.is_unequal);
  out[i] = v;
}

struct Reduced {
  int sum, low, high;
  unsigned total, small, big, all, some, odd;
};
void reduce_kernel(Reduced* out) {
  const unsigned i = threadIdx.x, mask = warp_mask(), bits = i * 2654435761u;
  const int value = int(i % 7) - 3;
  out[i] = {__reduce_add_sync(mask, value), __reduce_min_sync(mask, value),
            __reduce_max_sync(mask, value), __reduce_add_sync(mask, bits),
            __reduce_min_sync(mask, bits),  __reduce_max_sync(mask, bits),
            __reduce_and_sync(mask, bits),  __reduce_or_sync(mask, bits),
            __reduce_xor_sync(mask, bits)};
}

// A butterfly over every warp, then over the warps' sums: the reduction of every kernel.
void block_sum_kernel(const int* in, int* out) {
  auto& sums = shared_memory<int[32]>();
  int sum = in[threadIdx.x];
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  sum = threadIdx.x < blockDim.x / 32 ? sums[threadIdx.x] : 0;
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_down_sync(~0u, sum, unsigned(lanes));
  if (threadIdx.x == 0) *out = sum;
}

// One lane writes, the others read after __syncwarp.
void hand_over_kernel(int* out) {
  auto& slots = shared_memory<int[32]>();
  const unsigned warp = threadIdx.x / 32;
  for (unsigned round = 0; round < 5; ++round) {
    if (threadIdx.x % 32 == round) slots[warp] = int(100 * warp + round);
    __syncwarp(warp_mask());
    out[round * blockDim.x + threadIdx.x] = slots[warp];
    __syncwarp(warp_mask());
  }
}

const unsigned kSizes[] = {1, 31, 32, 33, 77, 1024};

}  // namespace

TEST_CASE("shuffles", "[simt]") {
  in_every_order([] {
    for (int width : {1, 2, 8, 16, 32})
      for (int amount : {0, 1, 2, 5, 8, 15, 16, 31, 32, 37, 63}) {
        Array<Shuffled> out(64);
        run<shuffle_kernel>(dim3(1), dim3(64), 0, out, amount, width);
        for (int i = 0; i < 64; ++i) {
          const int first = i / width * width, lane = i % width, by = amount % 32,
                    other = (i % 32 ^ by) + i / 32 * 32;
          REQUIRE(out[i].indexed == 1000 + first + amount % width);
          REQUIRE(out[i].up == 1000 + (lane >= by ? i - by : i));
          REQUIRE(out[i].down == 1000 + (lane + by < width ? i + by : i));
          REQUIRE(out[i].crosswise == 1000 + (other < first + width ? other : i));
        }
      }
  });
}

TEST_CASE("lanes outside of the mask take no part", "[simt]") {
  in_every_order([] {
    Array<unsigned> out(64);
    run<masked_kernel>(dim3(1), dim3(64), 0, out);
    for (unsigned i = 0; i < 64; i += 2)
      REQUIRE(out[i] == 4000 + i / 32 * 32 + (i % 32 < 16 ? 14 : 16));
  });
}

TEST_CASE("shuffles of 8 bytes and of structs", "[simt]") {
  Array<double> doubles(32);
  Array<unsigned long long> longs(32);
  Array<float2> pairs(32);
  run<wide_types_kernel>(dim3(1), dim3(32), 0, doubles, longs, pairs);
  for (unsigned i = 0; i < 32; ++i) {
    CHECK(doubles[i] == (i ^ 1) + 0.5);
    CHECK(longs[i] == (1ull << 40) + (i ? i - 1 : 0));
    CHECK((pairs[i].x == 5 && pairs[i].y == -5));
  }
}

TEST_CASE("votes and match", "[simt]") {
  in_every_order([] {
    for (unsigned n : kSizes) {
      Array<Votes> out(n);
      run<vote_kernel>(dim3(1), dim3(n), 0, out);
      for (unsigned i = 0; i < n; ++i) {
        const unsigned first = i / 32 * 32, end = min(n, first + 32);
        unsigned thirds = 0, partners = 0, all = 0;
        for (unsigned j = first; j < end; ++j) {
          const unsigned bit = 1u << (j - first);
          all |= bit;
          if (j % 3 == 0) thirds |= bit;
          if (j % 5 == i % 5) partners |= bit;
        }
        const bool single = end - first == 1;
        REQUIRE(out[i].ballot == thirds);
        REQUIRE(out[i].any == 1);
        REQUIRE(out[i].all == 0);
        REQUIRE(out[i].any_never == 0);
        REQUIRE(out[i].all_always == 1);
        REQUIRE(out[i].partners == partners);
        REQUIRE(out[i].equal == all);
        REQUIRE(out[i].is_equal == 1);
        REQUIRE(out[i].unequal == (single ? all : 0));
        REQUIRE(out[i].is_unequal == single);
      }
    }
  });
}

TEST_CASE("warp reductions", "[simt]") {
  in_every_order([] {
    for (unsigned n : kSizes) {
      Array<Reduced> out(n);
      run<reduce_kernel>(dim3(1), dim3(n), 0, out);
      for (unsigned i = 0; i < n; ++i) {
        Reduced expected{0, 3, -3, 0, ~0u, 0, ~0u, 0, 0};
        for (unsigned j = i / 32 * 32; j < min(n, i / 32 * 32 + 32); ++j) {
          const int value = int(j % 7) - 3;
          const unsigned bits = j * 2654435761u;
          expected = {expected.sum + value,  min(expected.low, value),  max(expected.high, value),
                      expected.total + bits, min(expected.small, bits), max(expected.big, bits),
                      expected.all & bits,   expected.some | bits,      expected.odd ^ bits};
        }
        REQUIRE(std::memcmp(&out[i], &expected, sizeof expected) == 0);
      }
    }
  });
}

TEST_CASE("a block's sum by shuffles and shared memory", "[simt]") {
  in_every_order([] {
    for (unsigned n : {32u, 64u, 1024u}) {
      std::vector<int> values(n);
      std::iota(values.begin(), values.end(), 17);
      Array<int> in(values), out(1);
      run<block_sum_kernel>(dim3(1), dim3(n), 128, in, out);
      CHECK(out[0] == std::accumulate(values.begin(), values.end(), 0));
    }
  });
}

TEST_CASE("__syncwarp makes writes of the warp visible", "[simt]") {
  in_every_order([] {
    for (unsigned n : {32u, 47u, 96u}) {  // the last warp has lanes 0 to 4 in any case
      Array<int> out(5 * n);
      run<hand_over_kernel>(dim3(1), dim3(n), 128, out);
      for (unsigned round = 0; round < 5; ++round)
        for (unsigned i = 0; i < n; ++i) REQUIRE(out[round * n + i] == int(100 * (i / 32) + round));
    }
  });
}

}  // namespace tessera::simt
