// cp.async of the host model: correct pipelines in every order and at every moment of
// landing, broken ones beside them, each of which must be found.
#include <catch2/catch.hpp>
#include <set>

#include "kernels/cuda/ptx/cp_async.h"
#include "kernels/cuda/ptx/fence.h"
#include "kernels/cuda/ptx/wgmma.h"
#include "tests/simt_run.h"

using namespace tessera;
using namespace tessera::simt;

namespace {

constexpr int kThreads = 64, kRounds = 9;
using Stage = float[kThreads];

enum class Flaw { None, NoWait, WaitTooShort, NoBarrier, StageTooSoon };

// out[i] = sum of all rounds' words of thread kThreads - 1 - i, which pass through a pipeline of
// three stages: two are in flight while one is read.
template <Flaw flaw>
void pipeline_kernel(const float* in, float* out) {
  Stage* stages = shared_memory<Stage[3]>();
  const int thread = int(threadIdx.x);
  const auto fetch = [&](int round, int stage) {
    if (round < kRounds) ptx::cp_async4(&stages[stage][thread], in + round * kThreads + thread);
    ptx::cp_async_commit();
  };
  fetch(0, 0);
  fetch(1, 1);
  float sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    // Into the stage that was read a round ago; too soon: into the one that is read now.
    if (flaw == Flaw::StageTooSoon) fetch(round + 2, round % 3);
    if (flaw == Flaw::WaitTooShort)
      ptx::cp_async_wait<2>();
    else if (flaw != Flaw::NoWait)
      ptx::cp_async_wait<1>();
    if (flaw != Flaw::NoBarrier) __syncthreads();
    if (flaw != Flaw::StageTooSoon) fetch(round + 2, (round + 2) % 3);
    sum += stages[round % 3][kThreads - 1 - thread];
  }
  out[thread] = sum;
}

std::vector<float> inputs() {
  std::vector<float> in(size_t(kThreads) * kRounds);
  for (size_t i = 0; i < in.size(); ++i) in[i] = float(i * i % 97);
  return in;
}

// "" when the kernel computes what it should, else its fault or the first wrong number.
template <Flaw flaw>
std::string outcome() {
  SimtRun simt;
  const std::vector<float> in = inputs();
  float* const out = simt.allocate<float>(kThreads);
  const std::string fault =
      simt.fault_of<pipeline_kernel<flaw>>(kThreads, sizeof(Stage[3]), simt.allocate(in), out);
  if (!fault.empty()) return fault;
  for (int i = 0; i < kThreads; ++i) {
    float sum = 0;
    for (int round = 0; round < kRounds; ++round) sum += in[round * kThreads + kThreads - 1 - i];
    if (out[i] != sum) return concat("wrong sum of thread ", i);
  }
  return "";
}

// Calls check() with several seeds in every order of threads and at every moment of landing.
template <class Check>
void for_each_schedule(Check check) {
  const ScopedOptions restore(options());
  options().trap_uninitialised = true;
  for (const Order order : {Order::Ascending, Order::Descending, Order::Random})
    for (const Landing landing : {Landing::Earliest, Landing::Latest, Landing::Random})
      for (uint64_t seed = 0; seed < 4; ++seed) {
        options().order = order;
        options().landing = landing;
        options().seed = seed;
        INFO("order " << int(order) << ", landing " << int(landing) << ", seed " << seed);
        check();
      }
}

// Operands of wgmma, 64 x 16 each.
struct Matrices {
  alignas(128) bf16 a[64 * 16], b[64 * 16];
};
struct Words {
  alignas(16) uint32_t word[8];
};
// One thread: what is in shared memory before the wait, after it, and where nothing waits.
void moments_kernel(const uint32_t* in, uint32_t* out) {
  Words& shared = shared_memory<Words>();
  for (int i = 0; i < 8; ++i) shared.word[i] = 1000;
  ptx::cp_async4(&shared.word[0], in);
  ptx::cp_async_commit();
  ptx::cp_async8(&shared.word[2], in + 2);
  ptx::cp_async_commit();
  ptx::cp_async16(&shared.word[4], in + 4, 8);
  for (int i = 0; i < 8; ++i) out[i] = shared.word[i];
  ptx::cp_async_wait<1>();
  for (int i = 0; i < 8; ++i) out[8 + i] = shared.word[i];
  ptx::cp_async_wait<0>();  // the last copy was not committed
  for (int i = 0; i < 8; ++i) out[16 + i] = shared.word[i];
  ptx::cp_async_wait_all();
  for (int i = 0; i < 8; ++i) out[24 + i] = shared.word[i];
}

// The source is changed after the issue.
void late_source_kernel(uint32_t* in, uint32_t* out) {
  Words& shared = shared_memory<Words>();
  in[0] = 1;
  ptx::cp_async4(&shared.word[0], in);
  in[0] = 2;
  ptx::cp_async_wait_all();
  out[0] = shared.word[0];
}

// Nothing waits in time; thread 1 reads what thread 0 copied after `suspensions` chances to land.
void never_kernel(const uint32_t* in, uint32_t* out, int suspensions) {
  Words& shared = shared_memory<Words>();
  if (threadIdx.x == 0) ptx::cp_async4(&shared.word[0], in);
  for (int i = 0; i < suspensions; ++i) __syncthreads();
  if (threadIdx.x == 1) out[0] = shared.word[0];
  __syncthreads();
  ptx::cp_async_wait_all();
}
// The last copy is committed, but nothing waits for it.
void forgotten_copy_kernel(const uint32_t* in) {
  Words& shared = shared_memory<Words>();
  for (int i = 0; i < 2; ++i) {
    ptx::cp_async4(&shared.word[i], in);
    ptx::cp_async_commit();
  }
  ptx::cp_async_wait<1>();
}
ptx::SharedMatrix plain_matrix(const void* at) { return {at, 128, 256, ptx::Layout::Plain}; }
void forgotten_product_kernel() {
  auto& zeros = shared_memory<Matrices>();
  if (threadIdx.x == 0) std::memset(&zeros, 0, sizeof zeros);
  __syncthreads();
  float d[8][4] = {};
  ptx::wgmma_fence();
  ptx::wgmma<64, false>(d, plain_matrix(zeros.a), plain_matrix(zeros.b));
  ptx::wgmma_commit();
}

enum class Unfenced { Nothing, Copies, TooSoon, Product, Sums };
// d = two products of matrices that cp.async brings, and of sums that are halved between them.
template <Unfenced unfenced>
void fenced_products_kernel(const bf16* in, float* out) {
  auto& matrices = shared_memory<Matrices>();
  auto* const to = reinterpret_cast<bf16*>(&matrices);
  const int thread = int(threadIdx.x);
  for (int i = thread * 8; i < int(sizeof matrices / sizeof(bf16)); i += 128 * 8)
    ptx::cp_async16(to + i, in + i);
  if (unfenced == Unfenced::TooSoon) ptx::fence_proxy_async();
  ptx::cp_async_wait_all();
  if (unfenced != Unfenced::Copies && unfenced != Unfenced::TooSoon) ptx::fence_proxy_async();
  __syncthreads();
  float d[8][4] = {};
  for (int i = 0; i < 2; ++i) {
    if (unfenced != Unfenced::Product && (unfenced != Unfenced::Sums || i == 0)) ptx::wgmma_fence();
    ptx::wgmma<64, false>(d, plain_matrix(matrices.a), plain_matrix(matrices.b));
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    for (auto& four : d)
      for (float& sum : four) sum /= 2;
  }
  for (int i = 0; i < 32; ++i) out[thread * 32 + i] = d[i / 4][i % 4];
}
enum class Touched { BeforeFence, InFlight, AfterFence, WithoutFence };
// Two products of an A in registers, which changes.
template <Touched touched>
void fragment_kernel() {
  auto& zeros = shared_memory<Matrices>();
  if (threadIdx.x == 0) std::memset(&zeros, 0, sizeof zeros);
  __syncthreads();
  float d[8][4] = {};
  uint32_t a[4] = {};
  for (int i = 0; i < 2; ++i) {
    if (touched != Touched::WithoutFence || i == 0) ptx::wgmma_fence();
    if (touched == Touched::AfterFence) ++a[1];
    ptx::wgmma<64, false>(d, a, plain_matrix(zeros.b));
    ptx::wgmma_commit();
    if (touched == Touched::InFlight) ++a[3];
    ptx::wgmma_wait<0>();
    ++a[0];
  }
}
template <Touched touched>
std::string outcome_of_fragment() {
  return SimtRun().fault_of<fragment_kernel<touched>>(128, sizeof(Matrices));
}

template <Unfenced unfenced>
std::string outcome_of_fences() {
  SimtRun simt;
  const std::vector<bf16> ones(sizeof(Matrices) / sizeof(bf16), to_bf16(1.0f));
  float* const out = simt.allocate<float>(128 * 32);
  const std::string fault = simt.fault_of<fenced_products_kernel<unfenced>>(
      128, sizeof(Matrices), simt.allocate(ones), out);
  if (!fault.empty()) return fault;
  for (int i = 0; i < 128 * 32; ++i)
    if (out[i] != (16.0f / 2 + 16) / 2) return concat("wrong sum ", i);
  return "";
}

template <int size>
void copy_kernel(const std::byte* in, int to, int from, int bytes) {
  Words& shared = shared_memory<Words>();
  std::byte* const at = reinterpret_cast<std::byte*>(&shared) + to;
  if (size == 4) ptx::cp_async4(at, in + from, bytes);
  if (size == 8) ptx::cp_async8(at, in + from, bytes);
  if (size == 16) ptx::cp_async16(at, in + from, bytes);
  ptx::cp_async_wait_all();
}
void copy_from_shared_kernel() {
  Words& shared = shared_memory<Words>();
  shared.word[0] = 1;
  ptx::cp_async4(&shared.word[4], &shared.word[0]);
  ptx::cp_async_wait_all();
}
void copy_to_global_kernel(const uint32_t* in, uint32_t* out) { ptx::cp_async16(out, in); }

constexpr uint32_t kUndefined = 0x7FBF7FBF;

}  // namespace

TEST_CASE("a pipeline of cp.async is right in every schedule", "[ptx]") {
  for_each_schedule([] { CHECK(outcome<Flaw::None>() == ""); });
}

TEST_CASE("a missing wait is found", "[ptx][race]") {
  const ScopedOptions restore(options());
  options().trap_uninitialised = true;
  for (const Landing landing : {Landing::Latest, Landing::Random}) {
    options().landing = landing;
    for (const std::string& found : {outcome<Flaw::NoWait>(), outcome<Flaw::WaitTooShort>()}) {
      CHECK(contains(found, "arithmetic on an uninitialised value"));
      CHECK(contains(found, "pipeline_kernel"));
      CHECK(contains(found, "block (0,0,0), thread ("));
    }
  }
}

TEST_CASE("a missing barrier and a stage that is filled too soon are found", "[ptx][race]") {
  for_each_schedule([] {
    for (const std::string& found : {outcome<Flaw::NoBarrier>(), outcome<Flaw::StageTooSoon>()}) {
      CHECK(found != "");
      if (options().landing != Landing::Latest) continue;  // else it may be a wrong sum
      CHECK(contains(found, "arithmetic on an uninitialised value"));
      CHECK(contains(found, "pipeline_kernel"));
      CHECK(contains(found, "block (0,0,0), thread ("));
    }
  });
}

TEST_CASE("cp.async lands between its issue and the wait that covers it", "[ptx]") {
  const ScopedOptions restore(options());
  const std::vector<uint32_t> in{10, 11, 12, 13, 14, 15, 16, 17};
  const uint32_t u = kUndefined, k = 1000;
  const auto run = [&](Landing landing) {
    options().landing = landing;
    SimtRun simt;
    uint32_t* const out = simt.allocate<uint32_t>(32);
    simt.run<moments_kernel>(1, sizeof(Words), simt.allocate(in), out);
    return std::vector<uint32_t>(out, out + 32);
  };
  CHECK(run(Landing::Latest) == std::vector<uint32_t>{u,  k, u,  u,  u,  u,  u, u,  //
                                                      10, k, u,  u,  u,  u,  u, u,  //
                                                      10, k, 12, 13, u,  u,  u, u,  //
                                                      10, k, 12, 13, 14, 15, 0, 0});
  CHECK(run(Landing::Earliest) == std::vector<uint32_t>{10, k, 12, 13, 14, 15, 0, 0,  //
                                                        10, k, 12, 13, 14, 15, 0, 0,  //
                                                        10, k, 12, 13, 14, 15, 0, 0,  //
                                                        10, k, 12, 13, 14, 15, 0, 0});
  // Random: each copy anywhere between, and every moment with some seed.
  std::set<uint32_t> before_wait, between;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    options().seed = seed;
    const std::vector<uint32_t> out = run(Landing::Random);
    before_wait.insert(out[0]);
    between.insert(out[8 + 2]);
    CHECK(out[8] == 10);
    CHECK(out[16 + 2] == 12);
    CHECK(out[24 + 4] == 14);
    CHECK(out[24 + 7] == 0);
  }
  CHECK(before_wait == std::set<uint32_t>{10, u});
  CHECK(between == std::set<uint32_t>{12, u});
}

TEST_CASE("cp.async reads its source when it lands", "[ptx]") {
  const ScopedOptions restore(options());
  for (const Landing landing : {Landing::Earliest, Landing::Latest}) {
    options().landing = landing;
    SimtRun simt;
    uint32_t* const out = simt.allocate<uint32_t>(1);
    simt.run<late_source_kernel>(1, sizeof(Words), simt.allocate<uint32_t>(4), out);
    CHECK(out[0] == (landing == Landing::Earliest ? 1 : 2));
  }
}

TEST_CASE("what nothing waits for lands never or some time", "[ptx][race]") {
  const ScopedOptions restore(options());
  const auto run = [](Landing landing, uint64_t seed, int suspensions) {
    options().landing = landing;
    options().seed = seed;
    SimtRun simt;
    uint32_t* const out = simt.allocate<uint32_t>(1);
    simt.run<never_kernel>(2, sizeof(Words), simt.allocate(std::vector<uint32_t>{7}), out,
                           suspensions);
    return out[0];
  };
  CHECK(run(Landing::Latest, 0, 50) == kUndefined);
  int landed = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) landed += run(Landing::Random, seed, 1) == 7;
  CHECK(landed > 0);
  CHECK(landed < 40);
}

TEST_CASE("what a thread has started it must wait for", "[ptx]") {
  SimtRun simt;
  CHECK(contains(simt.fault_of<forgotten_copy_kernel>(1, sizeof(Words), simt.allocate<uint32_t>(1)),
                 "the thread ends with 1 cp.async that it has not waited for"));
  CHECK(contains(simt.fault_of<forgotten_product_kernel>(128, sizeof(Matrices)),
                 "the thread ends with 1 wgmma.mma_async that it has not waited for"));
}

TEST_CASE("wgmma without its fences is found", "[ptx]") {
  for_each_schedule([] {
    CHECK(outcome_of_fences<Unfenced::Nothing>() == "");
    const std::string copied = "wgmma.mma_async reads what thread ";
    CHECK(contains(outcome_of_fences<Unfenced::Copies>(), copied));
    CHECK(contains(outcome_of_fences<Unfenced::Product>(), "without a wgmma.fence before it"));
    CHECK(contains(outcome_of_fences<Unfenced::Sums>(), "written since the last wgmma.fence"));
  });
  // A fence in front of the wait is one too soon for copies that land in it.
  const ScopedOptions restore(options());
  options().landing = Landing::Latest;
  CHECK(contains(outcome_of_fences<Unfenced::TooSoon>(), "has not fenced"));
}

TEST_CASE("what becomes of wgmma's A in registers is seen", "[ptx]") {
  for_each_schedule([] {
    CHECK(outcome_of_fragment<Touched::BeforeFence>() == "");
    CHECK(contains(outcome_of_fragment<Touched::AfterFence>(), "since the last wgmma.fence"));
    CHECK(contains(outcome_of_fragment<Touched::WithoutFence>(), "since the last wgmma.fence"));
  });
  const ScopedOptions restore(options());
  options().landing = Landing::Latest;
  CHECK(contains(outcome_of_fragment<Touched::InFlight>(),
                 "registers of A were written before their wgmma.mma_async had ended"));
}

TEST_CASE("what cp.async must not be given", "[ptx]") {
  SimtRun simt;
  const std::byte* const in = simt.allocate<std::byte>(64);
  const auto fault4 = [&](int to, int from, int bytes) {
    return simt.fault_of<copy_kernel<4>>(1, sizeof(Words), in, to, from, bytes);
  };
  const auto fault8 = [&](int to, int from, int bytes) {
    return simt.fault_of<copy_kernel<8>>(1, sizeof(Words), in, to, from, bytes);
  };
  const auto fault16 = [&](int to, int from, int bytes) {
    return simt.fault_of<copy_kernel<16>>(1, sizeof(Words), in, to, from, bytes);
  };
  CHECK(fault4(4, 4, 4) == "");
  CHECK(fault8(8, 8, 8) == "");
  CHECK(fault16(16, 16, 16) == "");
  CHECK(contains(fault4(2, 4, 4), "misaligned address: cp.async.4 at "));
  CHECK(contains(fault8(4, 8, 8), "misaligned address: cp.async.8 at "));
  CHECK(contains(fault16(8, 16, 16), "misaligned address: cp.async.16 at "));
  CHECK(contains(fault4(4, 2, 4), "misaligned address: cp.async.4 from "));
  CHECK(contains(fault8(8, 4, 8), "misaligned address: cp.async.8 from "));
  CHECK(contains(fault16(16, 8, 16), "misaligned address: cp.async.16 from "));
  CHECK(contains(fault16(16, 16, 17), "cp.async.16 of 17 bytes"));
  CHECK(contains(fault16(16, 16, -1), "cp.async.16 of -1 bytes"));
  CHECK(contains(fault16(32, 16, 16), "not in this block's shared memory"));
  CHECK(contains(simt.fault_of<copy_from_shared_kernel>(1, sizeof(Words)),
                 "which is in this block's shared memory"));
  CHECK(contains(simt.fault_of<copy_to_global_kernel>(1, sizeof(Words), simt.allocate<uint32_t>(4),
                                                      simt.allocate<uint32_t>(4)),
                 "not in this block's shared memory"));
}
