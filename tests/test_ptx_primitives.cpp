// Every primitive of the host model against its definition in plain loops, in several orders of
// threads and moments of landing: the same kernels and inputs that check_primitives runs on a GPU.
#include <catch2/catch.hpp>
#include <set>

#include "core/check.h"
#include "core/simt/options.h"
#include "tests/cuda/primitives.h"

using namespace tessera;

namespace {

const PrimitiveKernel* find(const std::string& name) {
  for (const PrimitiveKernel& kernel : simt::primitive_kernels())
    if (kernel.name == name) return &kernel;
  return nullptr;
}

std::vector<uint32_t> run(const PrimitiveKernel& kernel, const std::vector<uint32_t>& in) {
  std::vector<uint32_t> out(size_t(kPrimitiveBlocks) * kernel.out);
  kernel.run(kPrimitiveBlocks, in.data(), out.data());
  return out;
}

std::vector<uint32_t> expected(const PrimitiveDefinition& definition,
                               const std::vector<uint32_t>& in) {
  std::vector<uint32_t> out(size_t(kPrimitiveBlocks) * definition.out);
  std::vector<double> error(definition.out);
  for (int block = 0; block < kPrimitiveBlocks; ++block)
    definition.expected(in.data() + size_t(block) * definition.in,
                        out.data() + size_t(block) * definition.out, error.data());
  return out;
}

}  // namespace

TEST_CASE("primitives of the host model equal their definitions", "[ptx][slow]") {
  const simt::ScopedOptions restore(simt::options());
  constexpr simt::Order kOrders[] = {simt::Order::Ascending, simt::Order::Descending,
                                     simt::Order::Random, simt::Order::Random};
  constexpr simt::Landing kLandings[] = {simt::Landing::Latest, simt::Landing::Random,
                                         simt::Landing::Earliest, simt::Landing::Random};
  for (const PrimitiveDefinition& definition : primitive_definitions()) {
    INFO(definition.name);
    const PrimitiveKernel* const kernel = find(definition.name);
    REQUIRE(kernel);
    REQUIRE(kernel->in == definition.in);
    REQUIRE(kernel->out == definition.out);
    for (int round : {0, 1, 2, 3, 5, 7}) {
      INFO("round " << round);
      simt::options().order = kOrders[round % 4];
      simt::options().landing = kLandings[round % 4];
      simt::options().seed = uint64_t(round);
      const std::vector<uint32_t> in = draw_inputs(definition, round);
      CHECK(compare(definition, in, run(*kernel, in), expected(definition, in)) == "");
    }
  }
}

TEST_CASE("every kernel of the primitives has a definition", "[ptx]") {
  std::set<std::string> defined;
  for (const PrimitiveDefinition& definition : primitive_definitions())
    CHECK(defined.insert(definition.name).second);
  for (const PrimitiveKernel& kernel : simt::primitive_kernels())
    CHECK(defined.count(kernel.name) == 1);
  CHECK(defined.size() == simt::primitive_kernels().size());
}

TEST_CASE("what is timed on a GPU has no faults", "[ptx][slow]") {
  CHECK(simt::wgmma_rates(2).size() == 2 * 10 + 3 + 5);
  const simt::ScopedOptions restore(simt::options());
  simt::options().profile.multiprocessors = 1;  // blocks enough
  const std::vector<Rate> rates = simt::mainloop_rates(8);
  CHECK(rates.size() == 4 * 2 + 7 * 3 + 4 * 2 * 3 + 5 * 4);
  for (const Rate& rate : rates) CHECK(rate.clocks == 0);
}

TEST_CASE("a primitive that the profile lacks is a fault", "[ptx][slow]") {
  const simt::ScopedOptions restore(simt::options());
  for (const PrimitiveDefinition& definition : primitive_definitions())
    for (const int capability : {75, 80, 89, 90}) {
      INFO(definition.name << " on sm_" << capability);
      simt::options().profile = simt::profile_of(capability);
      // The conversion to bf16 is done in other ways where the instruction is not.
      const bool everywhere = definition.name.find("cvt.rn.bf16") == 0;
      const std::vector<uint32_t> in = draw_inputs(definition, 1);
      if (everywhere || capability >= definition.capability)
        CHECK_NOTHROW(run(*find(definition.name), in));
      else
        CHECK_THROWS_WITH(
            run(*find(definition.name), in),
            Catch::Contains(" needs sm_") && Catch::Contains(concat(", this is sm_", capability)));
    }
}

// The comparison itself can fail.
TEST_CASE("compare finds one wrong bit and one wrong sum", "[ptx][slow]") {
  for (const PrimitiveDefinition& definition : primitive_definitions()) {
    INFO(definition.name);
    const std::vector<uint32_t> in = draw_inputs(definition, 0), right = expected(definition, in);
    CHECK(compare(definition, in, right, right) == "");
    for (const size_t at : {size_t{0}, right.size() / 2, right.size() - 1}) {
      std::vector<uint32_t> wrong = right;
      wrong[at] ^= 1u << 22;
      CHECK(compare(definition, in, wrong, right) != "");
    }
  }
}
