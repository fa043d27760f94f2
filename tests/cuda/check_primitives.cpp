// check_primitives: runs every primitive (primitives.h) on random inputs on this machine's GPU and
// on the host model, and compares: bit by bit where bits are moved, mma exactly on small integers
// and otherwise within the error of tensor cores. Prints a line for each, and on an sm_90a what
// wgmma and the copies of its operands take; exits with status 1 when one differs, with 3 when
// there is no GPU to check.
#include <cstdio>

#include "core/check.h"
#include "core/device.h"
#include "core/simt/options.h"
#include "tests/cuda/primitives.h"

using namespace tessera;

namespace {

constexpr int kRounds = 8, kNoGpu = 3;

#ifdef TESSERA_HAS_CUDA

const PrimitiveKernel& find(const std::vector<PrimitiveKernel>& kernels, const std::string& name) {
  for (const PrimitiveKernel& kernel : kernels)
    if (kernel.name == name) return kernel;
  throw_error("find", __FILE__, __LINE__, concat("no kernel for ", name));
}

// "" or the first difference.
std::string check(const PrimitiveDefinition& definition) {
  const PrimitiveKernel& device = find(gpu::primitive_kernels(), definition.name);
  const PrimitiveKernel& host = find(simt::primitive_kernels(), definition.name);
  const size_t words = size_t(kPrimitiveBlocks) * definition.out;
  for (int round = 0; round < kRounds; ++round) {
    const std::vector<uint32_t> in = draw_inputs(definition, round);
    std::vector<uint32_t> got(words), expected(words);
    device.run(kPrimitiveBlocks, in.data(), got.data());
    host.run(kPrimitiveBlocks, in.data(), expected.data());
    const std::string difference = compare(definition, in, got, expected);
    if (!difference.empty()) return concat("round ", round, ", ", difference);
  }
  return "";
}

void print(const char* title, const std::vector<Rate>& rates) {
  std::puts(title);
  for (const Rate& rate : rates) {
    std::printf("  %-50s %7.1f", rate.name.c_str(), rate.clocks);
    if (rate.best > 0) std::printf(" where tensor cores need %.0f", rate.best);
    if (rate.bytes > 0) std::printf(", %.1f bytes a clock", rate.bytes / rate.clocks);
    std::puts("");
  }
}
// What designs of kernels stand on (docs/performance.md).
void print_rates() {
  print("clocks on one multiprocessor; wgmma by two warpgroups, four products to a commit:",
        gpu::wgmma_rates(256));
  print("clocks of one multiprocessor for a step of a mainloop:", gpu::mainloop_rates(256));
}

int check_all(int capability) {
  int failed = 0;
  for (const PrimitiveDefinition& definition : primitive_definitions()) {
    if (capability < definition.capability || capability > definition.last) {
      std::printf("%-34s not checked: of sm_%d, and this is sm_%d\n", definition.name.c_str(),
                  definition.capability, capability);
      continue;
    }
    const std::string difference = check(definition);
    failed += !difference.empty();
    std::printf("%-34s %s\n", definition.name.c_str(),
                difference.empty() ? "ok" : concat("DIFFERS: ", difference).c_str());
  }
  if (capability == 90) print_rates();
  std::printf("check_primitives: %d differ\n", failed);
  return failed ? 1 : 0;
}

#endif

int run() {
#ifdef TESSERA_HAS_CUDA
  if (has_gpu()) return check_all(Device::open(DeviceType::cuda)->info().capability);
#endif
  std::puts("check_primitives: no GPU here, nothing was checked");
  return kNoGpu;
}

}  // namespace

int main() try { return run(); } catch (const std::exception& error) {
  std::fprintf(stderr, "check_primitives: error: %s\n", error.what());
  return 1;
}
