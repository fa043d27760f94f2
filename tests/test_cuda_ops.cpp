// The CUDA kernels against the f64 oracle: on the host model always, on a GPU when there is one.
// The cases are those of the CPU (tests/ops/*.cpp).
#include <catch2/catch.hpp>
#include <set>

#include "core/simt/options.h"
#include "tests/op_runner.h"

using namespace tessera;

namespace {

constexpr GradMode kModes[] = {GradMode::Overwrite, GradMode::Accumulate};

// How the kernels compute: activations stored as, products by, and the error that this allows.
struct Mode {
  const char* name;
  DType storage;
  Math math;
  double tolerance(const OpCase& c) const {
    const double chain = c.tolerance / 1e-5;  // 1 for an operation, 3 for a block of several
    if (storage == DType::bf16) return chain * 1e-2;
    return math == Math::tf32 ? chain * 4e-3 : c.tolerance;
  }
};
constexpr Mode kF32{"f32", DType::f32, Math::f32}, kTf32{"tf32", DType::f32, Math::tf32},
    kBf16{"bf16", DType::bf16, Math::f32};

// Calls check(stream, oracle stream, case) for every case of `op` on every device with CUDA
// kernels.
template <class Check>
void for_each_case(const std::string& op, const Mode& mode, Check check) {
  const simt::ScopedOptions restore(simt::options());
  std::vector<DeviceType> devices{DeviceType::simt};
  if (has_gpu()) devices.push_back(DeviceType::cuda);
  Stream oracle(poisoned_cpu());
  for (DeviceType type : devices) {
    uint64_t number = 0;
    for (const OpCase& c : all_cases().tests) {
      if (c.op != op) continue;
      INFO(name_of(type) << ' ' << mode.name << ' ' << c.op << ' ' << c.name);
      // Every case sees another order, and the profiles take turns.
      simt::options().order = simt::Order::Random;
      simt::options().landing = number % 2 ? simt::Landing::Latest : simt::Landing::Random;
      simt::options().seed = ++number;
      simt::options().profile = simt::profile_of(number % 2 ? 80 : 90);
      simt::options().trap_uninitialised = true;
      Stream stream(poisoned(type));
      stream.math = mode.math;
      check(stream, oracle, c);
    }
    REQUIRE(number > 0);
  }
}

void equals_oracle(const std::string& op, const Mode& mode) {
  for_each_case(op, mode, [&](Stream& stream, Stream& oracle, const OpCase& c) {
    for (GradMode grad : kModes) {
      INFO((grad == GradMode::Overwrite ? "overwriting" : "accumulating"));
      for (Numbers numbers : {Numbers::Normal, Numbers::Integers}) {
        // Sums of products of small integers are exact in f32 and tf32.
        const bool exact = numbers == Numbers::Integers && mode.storage == DType::f32;
        if (numbers == Numbers::Integers && !(c.exact && exact)) continue;
        const Result fast = run(stream, c, c.apply, mode.storage, numbers, grad);
        const Result expected = run(oracle, c, c.apply, DType::f64, numbers, grad, mode.storage);
        CHECK(difference(fast, expected, exact ? 0 : mode.tolerance(c)) == "");
      }
    }
  });
}

const std::vector<std::string>& ops() {
  static const std::vector<std::string> names = [] {
    std::set<std::string> set;
    for (const OpCase& c : all_cases().tests) set.insert(c.op);
    return std::vector<std::string>(set.begin(), set.end());
  }();
  return names;
}

}  // namespace

TEST_CASE("CUDA kernels in f32 equal the f64 oracle", "[cuda]") {
  for (const std::string& op : ops()) DYNAMIC_SECTION(op) {
      equals_oracle(op, kF32);
    }
}

TEST_CASE("CUDA kernels in tf32 equal the f64 oracle", "[cuda]") {
  for (const char* op : {"conv2d", "upcat_conv2d", "residual_block"}) DYNAMIC_SECTION(op) {
      equals_oracle(op, kTf32);
    }
}

TEST_CASE("CUDA kernels in bf16 equal the f64 oracle", "[cuda]") {
  for (const std::string& op : ops()) DYNAMIC_SECTION(op) {
      equals_oracle(op, kBf16);
    }
}
