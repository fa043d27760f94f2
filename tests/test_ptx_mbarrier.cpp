// mbarrier and named barriers of the host model: phases, and what is done wrong.
#include <catch2/catch.hpp>

#include "kernels/cuda/ptx/fence.h"
#include "kernels/cuda/ptx/mbarrier.h"
#include "kernels/cuda/ptx/named_barrier.h"
#include "tests/simt_run.h"

using namespace tessera;
using namespace tessera::simt;

namespace {

using ptx::Mbarrier;

// One thread plays three arrivals a phase; what test_wait says of both parities after each.
void phases_kernel(int* out) {
  Mbarrier& b = shared_memory<Mbarrier>();
  ptx::mbarrier_init(&b, 3);
  const auto look = [&] {
    *out++ = ptx::mbarrier_test_wait(&b, 0);
    *out++ = ptx::mbarrier_test_wait(&b, 1);
  };
  look();
  for (int phase = 0; phase < 3; ++phase)
    for (int i = 0; i < 3; ++i) {
      ptx::mbarrier_arrive(&b);
      look();
    }
  ptx::mbarrier_invalidate(&b);
  ptx::mbarrier_init(&b, 1);  // starts anew
  look();
}

// Arrivals are complete before the bytes are, then the other way round, then bytes come first.
void bytes_kernel(int* out) {
  Mbarrier& b = shared_memory<Mbarrier>();
  ptx::mbarrier_init(&b, 1);
  const auto look = [&] { *out++ = ptx::mbarrier_try_wait(&b, 0); };
  ptx::mbarrier_arrive_expect_tx(&b, 100);
  look();
  ptx::mbarrier_complete_tx(&b, 60);
  look();
  ptx::mbarrier_complete_tx(&b, 40);
  look();                            // phase 1 has begun
  ptx::mbarrier_complete_tx(&b, 8);  // before it is announced
  look();
  ptx::mbarrier_arrive_expect_tx(&b, 8);
  look();
}

enum class Misuse { None, NotInitialised, TooMany, NoArrivals, Parity, Invalidated, Misaligned };
template <Misuse misuse>
void misuse_kernel() {
  auto& words = shared_memory<uint64_t[4]>();
  auto* const b = reinterpret_cast<Mbarrier*>(reinterpret_cast<std::byte*>(words) +
                                              (misuse == Misuse::Misaligned ? 4 : 0));
  if (misuse != Misuse::NotInitialised) ptx::mbarrier_init(b, misuse == Misuse::NoArrivals ? 0 : 2);
  if (misuse == Misuse::Invalidated) ptx::mbarrier_invalidate(b);
  if (misuse == Misuse::TooMany) {
    ptx::mbarrier_arrive_expect_tx(b, 4);  // keeps the phase open
    ptx::mbarrier_arrive(b);
    ptx::mbarrier_arrive(b);
  }
  ptx::mbarrier_arrive(b);
  ptx::mbarrier_arrive(b);
  ptx::mbarrier_wait(b, misuse == Misuse::Parity ? 2 : 0);
}

// Thread 3 does not arrive, or nobody waits for those who do not arrive.
void deadlock_kernel(int absent) {
  Mbarrier& b = shared_memory<Mbarrier>();
  if (threadIdx.x == 0) ptx::mbarrier_init(&b, int(blockDim.x));
  __syncthreads();
  if (int(threadIdx.x) != absent) ptx::mbarrier_arrive(&b);
  ptx::mbarrier_wait(&b, 0);
}

// Phases far apart: a slow thread has much to do between its arrivals.
void slow_kernel(int* out) {
  Mbarrier& b = shared_memory<Mbarrier>();
  if (threadIdx.x == 0) ptx::mbarrier_init(&b, int(blockDim.x));
  __syncthreads();
  int sum = 0;
  for (int phase = 0; phase < 20; ++phase) {
    if (threadIdx.x < 32)
      for (int i = 0; i < 500; ++i) sum += __any_sync(0xFFFFFFFF, 1);
    ptx::mbarrier_arrive(&b);
    ptx::mbarrier_wait(&b, phase % 2);
  }
  out[threadIdx.x] = sum;
}

// Producers fill a slot, consumers read it; without `waits` for room the slot is filled too soon.
struct Slot {
  Mbarrier full, empty;
  int words[32];
};
template <bool waits>
void slot_kernel(int* out) {
  Slot& slot = shared_memory<Slot>();
  const int thread = int(threadIdx.x);
  if (thread == 0) {
    ptx::mbarrier_init(&slot.full, 32);
    ptx::mbarrier_init(&slot.empty, 32);
  }
  __syncthreads();
  unsigned sum = 0;  // may have words that were never written
  for (int round = 0; round < 6; ++round)
    if (thread < 32) {
      if (waits) ptx::mbarrier_wait(&slot.empty, (round + 1) % 2);
      slot.words[thread] = round * 100 + thread;
      ptx::mbarrier_arrive(&slot.full);
    } else {
      ptx::mbarrier_wait(&slot.full, round % 2);
      sum = sum * 3 + unsigned(slot.words[63 - thread]);
      ptx::mbarrier_arrive(&slot.empty);
    }
  if (thread >= 32) out[thread - 32] = int(sum);
}

template <bool waits>
bool slot_is_right() {
  SimtRun simt;
  int* const out = simt.allocate<int>(32);
  if (!simt.fault_of<slot_kernel<waits>>(64, sizeof(Slot), out).empty()) return false;
  for (int i = 0; i < 32; ++i) {
    int sum = 0;
    for (int round = 0; round < 6; ++round) sum = sum * 3 + round * 100 + 31 - i;
    if (out[i] != sum) return false;
  }
  return true;
}

void odd_barrier_kernel(int id, int threads) { ptx::named_barrier_sync(id, threads); }
void fence_kernel() { ptx::fence_proxy_async(); }

}  // namespace

TEST_CASE("phases of an mbarrier", "[ptx]") {
  SimtRun simt;
  int* const out = simt.allocate<int>(22);
  simt.run<phases_kernel>(1, sizeof(Mbarrier), out);
  // Of the parities 0, 1: complete is the phase before the current one.
  CHECK(std::vector<int>(out, out + 22) ==
        std::vector<int>{0, 1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1, 1, 0, 0, 1});
}

TEST_CASE("an mbarrier waits for announced bytes", "[ptx]") {
  SimtRun simt;
  int* const out = simt.allocate<int>(5);
  simt.run<bytes_kernel>(1, sizeof(Mbarrier), out);
  CHECK(std::vector<int>(out, out + 5) == std::vector<int>{0, 0, 1, 1, 0});
}

TEST_CASE("mbarriers order a producer and a consumer, and one that is missing is found",
          "[ptx][race]") {
  const ScopedOptions restore(options());
  for (const int capability : {80, 90}) {
    options().profile = profile_of(capability);
    int wrong = 0;
    for (const Order order : {Order::Ascending, Order::Descending, Order::Random})
      for (uint64_t seed = 0; seed < 4; ++seed) {
        options().order = order;
        options().seed = seed;
        INFO("order " << int(order) << ", seed " << seed);
        CHECK(slot_is_right<true>());
        wrong += !slot_is_right<false>();
      }
    CHECK(wrong == 12);
  }
}

TEST_CASE("a slow thread is not a deadlock, an absent one is", "[ptx]") {
  const ScopedOptions restore(options());
  SimtRun simt;
  int* const out = simt.allocate<int>(64);
  simt.run<slow_kernel>(64, sizeof(Mbarrier), out);
  CHECK(out[0] == 20 * 500);
  CHECK(out[63] == 0);
  CHECK(simt.fault_of<deadlock_kernel>(64, sizeof(Mbarrier), -1) == "");
  for (const int capability : {80, 90}) {
    options().profile = profile_of(capability);
    const std::string fault = simt.fault_of<deadlock_kernel>(64, sizeof(Mbarrier), 3);
    CHECK(contains(fault, concat("deadlock: mbarrier.", capability == 80 ? "test" : "try",
                                 "_wait is never completed")));
    CHECK(contains(fault, "deadlock_kernel, block (0,0,0), thread ("));
  }
}

TEST_CASE("what must not be done with an mbarrier", "[ptx]") {
  SimtRun simt;
  const size_t bytes = 4 * sizeof(uint64_t);
  CHECK(simt.fault_of<misuse_kernel<Misuse::None>>(1, bytes) == "");
  CHECK(contains(simt.fault_of<misuse_kernel<Misuse::NotInitialised>>(1, bytes),
                 "mbarrier.arrive on a barrier that is not initialised"));
  CHECK(contains(simt.fault_of<misuse_kernel<Misuse::Invalidated>>(1, bytes),
                 "mbarrier.arrive on a barrier that is not initialised"));
  CHECK(contains(simt.fault_of<misuse_kernel<Misuse::TooMany>>(1, bytes),
                 "mbarrier.arrive: more than 2 arrivals in a phase"));
  CHECK(contains(simt.fault_of<misuse_kernel<Misuse::NoArrivals>>(1, bytes),
                 "mbarrier.init for 0 arrivals"));
  CHECK(contains(simt.fault_of<misuse_kernel<Misuse::Parity>>(1, bytes), "for parity 2"));
  CHECK(contains(simt.fault_of<misuse_kernel<Misuse::Misaligned>>(1, bytes),
                 "misaligned address: mbarrier.init at "));
}

TEST_CASE("what must not be done with named barriers", "[ptx]") {
  SimtRun simt;
  CHECK(simt.fault_of<odd_barrier_kernel>(64, 0, 1, 64) == "");
  CHECK(contains(simt.fault_of<odd_barrier_kernel>(64, 0, 16, 64), "barrier 16 does not exist"));
  CHECK(contains(simt.fault_of<odd_barrier_kernel>(64, 0, 1, 33), "must be a multiple of 32"));
}

TEST_CASE("fence.proxy.async needs sm_90", "[ptx]") {
  const ScopedOptions restore(options());
  SimtRun simt;
  CHECK(simt.fault_of<fence_kernel>(1, 0) == "");
  options().profile = profile_of(89);
  CHECK(contains(simt.fault_of<fence_kernel>(1, 0), "fence.proxy.async needs sm_90"));
}
