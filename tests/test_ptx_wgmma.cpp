// That a warpgroup executes its instructions as one is checked.
#include <catch2/catch.hpp>

#include "core/dtype.h"
#include "kernels/cuda/ptx/fence.h"
#include "kernels/cuda/ptx/wgmma.h"
#include "tests/simt_device.h"
#include "tests/simt_run.h"

using namespace tessera;
using namespace tessera::simt;

namespace {

struct Matrices {
  alignas(1024) bf16 a[64 * 16], b[64 * 16];
};
ptx::SharedMatrix matrix(const bf16* x, int leading = 128) {
  return {x, leading, 256, ptx::Layout::Plain};
}

enum class How { Right, OneWarp, OtherMatrix, OtherLane, OtherOrder, LessWaits, WarpLeaves, Field };

template <How how>
void group_kernel(float* sums) {
  auto& m = shared_memory<Matrices>();
  for (unsigned i = threadIdx.x; i < 1024; i += blockDim.x) m.a[i] = m.b[i] = to_bf16(1);
  ptx::fence_proxy_async();
  __syncthreads();
  const unsigned warp = threadIdx.x / 32;
  const bool other = how == How::OtherLane ? threadIdx.x % 2 : warp == 2;
  float d[8][4] = {}, e[8][4] = {};
  if (how == How::WarpLeaves && other) return;
  if (how == How::OneWarp && !other) return;
  const bool swapped = other && (how == How::OtherMatrix || how == How::OtherLane);
  ptx::wgmma_fence();
  if (how == How::OtherOrder && other) {
    ptx::wgmma<64, false>(e, matrix(m.b), matrix(m.a));
    ptx::wgmma<64, false>(d, matrix(m.a), matrix(m.b));
  } else {
    ptx::wgmma<64, false>(d, matrix(swapped ? m.b : m.a, how == How::Field ? 136 : 128),
                          matrix(m.b));
    ptx::wgmma<64, false>(e, matrix(m.b), matrix(m.a));
  }
  ptx::wgmma_commit();
  if (!(how == How::LessWaits && other)) ptx::wgmma_wait<1>();
  ptx::wgmma_wait<0>();
  sums[threadIdx.x] = d[0][0] + e[0][0];
}

template <How how>
std::string outcome(int threads = 128) {
  SimtRun simt;
  float* const sums = simt.allocate<float>(size_t(threads));
  const std::string fault = simt.fault_of<group_kernel<how>>(threads, sizeof(Matrices), sums);
  if (fault.empty())
    for (int i = 0; i < threads; ++i) CHECK(sums[i] == 32);
  return fault;
}

}  // namespace

TEST_CASE("what the warps of a warpgroup do differently is found", "[ptx]") {
  const ScopedOptions restore(options());
  options().profile = profile_of(90);
  in_every_order([] {
    const std::string other = "another warp of its warpgroup does something else";
    CHECK(outcome<How::Right>() == "");
    CHECK(outcome<How::Right>(256) == "");
    CHECK(contains(outcome<How::Right>(64), "in a block of 64 threads: a warpgroup has 128"));
    CHECK(contains(outcome<How::Right>(192), "in a block of 192 threads: a warpgroup has 128"));
    CHECK(contains(outcome<How::OneWarp>(), "of a warpgroup by 1 of its four warps"));
    CHECK(contains(outcome<How::WarpLeaves>(), "of a warpgroup by 3 of its four warps"));
    CHECK(contains(outcome<How::OtherMatrix>(), other));
    CHECK(contains(outcome<How::OtherOrder>(), other));
    CHECK(contains(outcome<How::LessWaits>(), other));
    CHECK(contains(outcome<How::OtherLane>(), "of other matrices than another lane's"));
    CHECK(contains(outcome<How::Field>(), "of a matrix whose parts are 136 bytes apart"));
  });
}
