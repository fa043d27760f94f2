// The CUDA kernels against the f64 oracle: on the host model always, on a GPU when there is one.
// The cases are those of the CPU (tests/ops/*.cpp).
#include <catch2/catch.hpp>
#include <set>

#include "core/simt/options.h"
#include "tests/cuda_devices.h"

using namespace tessera;

namespace {

constexpr GradMode kModes[] = {GradMode::Overwrite, GradMode::Accumulate};

// How the kernels compute: activations stored as, products by, and the error that this allows. In
// bf16 the oracle rounds what the kernels store on the way (OpCase::bf16_steps).
struct Mode {
  const char* name;
  DType storage;
  Math math;
  double tolerance;
  uint64_t number;  // modes see other orders than each other
};
constexpr Mode kF32{"f32", DType::f32, Math::f32, 1e-5, 0},
    kTf32{"tf32", DType::f32, Math::tf32, 4e-3, 1}, kBf16{"bf16", DType::bf16, Math::f32, 1e-2, 2};

// Calls check(stream, oracle stream, case, number of the case) for every case of `op` on every
// device with CUDA kernels. The profiles take turns, and not in step with four variants of a case.
template <class Check>
void for_each_case(const std::string& op, const Mode& mode, Check check) {
  const simt::ScopedOptions restore(simt::options());
  constexpr int kProfiles[] = {75, 80, 89, 90};
  Stream oracle(poisoned_cpu());
  for (const DeviceType type : cuda_device_types()) {
    uint64_t number = 0;
    for (const OpCase& c : all_cases().tests) {
      if (c.op != op) continue;
      simt::options().profile =
          simt::profile_of(kProfiles[(number + number / 4 + mode.number) % 4]);
      simt::options().trap_uninitialised = true;
      INFO(name_of(type) << ' ' << mode.name << ' ' << c.op << ' ' << c.name << " on "
                         << simt::options().profile.capability);
      Stream stream(poisoned(type));
      stream.math = mode.math;
      check(stream, oracle, c, number++);
    }
    REQUIRE(number > 3);
  }
}

// Run `run` of a case in an order of its own. Landings take turns, profiles do so by cases: three
// landings and four profiles meet each other.
void draw_order(const Mode& mode, uint64_t number, uint64_t run) {
  constexpr simt::Landing kLandings[] = {simt::Landing::Random, simt::Landing::Latest,
                                         simt::Landing::Earliest};
  simt::options().order = simt::Order::Random;
  simt::options().landing = kLandings[(number + run) % 3];
  simt::options().seed = 1 + run + 4 * (mode.number + 3 * number);
}

// Elementwise, but in the norm a block in tf32, and on a GPU in bf16: tensor cores round in their
// own way, and what lies between two numbers of bf16 goes to the other one, where no step of an
// oracle can follow. At worst 2.9e-3 in tf32 and below 3e-3 in bf16 on the host model.
std::string error_of(const Result& fast, const Result& expected, const OpCase& c, const Mode& mode,
                     const Stream& stream) {
  const bool on_gpu = stream.device().type() == DeviceType::cuda;
  const bool in_bf16 = on_gpu && mode.number == kBf16.number;
  if (c.op == "residual_block" && (mode.number == kTf32.number || in_bf16)) {
    const std::string in_norm = norm_difference(fast, expected, kTf32.tolerance);
    return in_bf16 && in_norm.empty() ? difference(fast, expected, 2 * mode.tolerance) : in_norm;
  }
  return difference(fast, expected, std::max(mode.tolerance, c.tolerance));
}

void equals_oracle(const std::string& op, const Mode& mode) {
  for_each_case(op, mode, [&](Stream& stream, Stream& oracle, const OpCase& c, uint64_t number) {
    // TF32 rounds inside products, where no oracle can follow; what comes out on the other side of
    // zero makes a ReLU jump. In f32 and bf16 they are compared.
    const bool jumps = op == "residual_block" && c.name.starts_with("relu");
    if (jumps && mode.math == Math::tf32) return;
    uint64_t runs = 0;
    for (GradMode grad : kModes)
      for (Numbers numbers : {Numbers::Normal, Numbers::Integers}) {
        // Sums of products of small integers are exact.
        const bool exact = numbers == Numbers::Integers;
        if (exact && !c.exact) continue;
        INFO((grad == GradMode::Overwrite ? "overwriting" : "accumulating")
             << (exact ? " integers" : ""));
        draw_order(mode, number, runs++);
        const bool steps = mode.storage == DType::bf16 && c.bf16_steps;
        const Result fast = run(stream, c, c.apply, mode.storage, numbers, grad);
        const Result expected =
            run(oracle, c, steps ? c.bf16_steps : c.apply, DType::f64, numbers, grad, mode.storage);
        if (exact)
          CHECK(difference(fast, as_stored(expected, c, mode.storage), 0) == "");
        else
          CHECK(error_of(fast, expected, c, mode, stream) == "");
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

// The largest case of `op` below these limits.
const OpCase* small_case(const std::vector<OpCase>& cases, const std::string& op) {
  const OpCase* found = nullptr;
  for (const OpCase& c : cases)
    if (c.op == op && c.forward.bytes < 2e4 && c.forward.flops < 5e5 &&
        (!found || c.forward.bytes > found->forward.bytes))
      found = &c;
  return found;
}

}  // namespace

// For ThreadSanitizer, to which each CUDA thread is a thread that takes it a millisecond to make:
// all cases would take hours.
TEST_CASE("CUDA kernels at one small size of every operation", "[cuda][small]") {
  const std::vector<OpCase> cases = all_cases().tests;
  const simt::ScopedOptions restore(simt::options());
  Stream oracle(poisoned_cpu());
  for (const Mode& mode : {kF32, kBf16})
    for (const std::string& op : ops()) {
      const OpCase* c = small_case(cases, op);
      REQUIRE(c);
      INFO(mode.name << ' ' << op << ' ' << c->name);
      simt::options().profile = simt::profile_of(80);
      draw_order(mode, 1, 1);
      Stream stream(poisoned(DeviceType::simt));
      stream.math = mode.math;
      const bool steps = mode.storage == DType::bf16 && c->bf16_steps;
      const Result fast =
          run(stream, *c, c->apply, mode.storage, Numbers::Normal, GradMode::Overwrite);
      const Result expected = run(oracle, *c, steps ? c->bf16_steps : c->apply, DType::f64,
                                  Numbers::Normal, GradMode::Overwrite, mode.storage);
      CHECK(error_of(fast, expected, *c, mode, stream) == "");
    }
}

TEST_CASE("CUDA kernels in f32 equal the f64 oracle", "[cuda]") {
  for (const std::string& op : ops()) DYNAMIC_SECTION(op) {
      equals_oracle(op, kF32);
    }
}

TEST_CASE("CUDA kernels in tf32 equal the f64 oracle", "[cuda]") {
  for (const char* op : {"conv2d", "linear", "upcat_conv2d", "residual_block"})
    DYNAMIC_SECTION(op) { equals_oracle(op, kTf32); }
}

TEST_CASE("CUDA kernels in bf16 equal the f64 oracle", "[cuda]") {
  for (const std::string& op : ops()) DYNAMIC_SECTION(op) {
      equals_oracle(op, kBf16);
    }
}

// Views may begin anywhere; the host model faults a pack that is not aligned.
TEST_CASE("CUDA kernels take tensors that lie between two packs", "[cuda]") {
  const auto in_packs = [](const OpCase& c) {
    return std::ranges::all_of(c.inputs, [](const Shape& shape) {
      return shape.rank() > 0 && shape[shape.rank() - 1] % 8 == 0;
    });
  };
  for (const Mode& mode : {kF32, kBf16})
    for (const std::string& op : ops()) DYNAMIC_SECTION(mode.name << ' ' << op) {
        for_each_case(op, mode, [&](Stream& stream, Stream& oracle, const OpCase& c, uint64_t i) {
          if (!in_packs(c) || c.forward.flops > 3e6) return;
          const bool steps = mode.storage == DType::bf16 && c.bf16_steps;
          const Result expected = run(oracle, c, steps ? c.bf16_steps : c.apply, DType::f64,
                                      Numbers::Normal, GradMode::Accumulate, mode.storage);
          const size_t tensors = 2 * c.inputs.size() + 1 - size_t(c.constants);
          for (size_t shifted = 0; shifted < tensors; ++shifted) {
            INFO("tensor " << shifted);
            draw_order(mode, i, shifted);
            const Result fast = run(stream, c, c.apply, mode.storage, Numbers::Normal,
                                    GradMode::Accumulate, mode.storage, shifted);
            CHECK(error_of(fast, expected, c, mode, stream) == "");
          }
        });
      }
}

TEST_CASE("CUDA kernels compute one gradient where no other is wanted", "[cuda]") {
  for (const Mode& mode : {kF32, kBf16})
    for (const char* op : {"conv2d", "linear", "group_norm_act", "upcat_conv2d", "residual_block"})
      DYNAMIC_SECTION(mode.name << ' ' << op) {
        for_each_case(op, mode, [&](Stream& stream, Stream&, const OpCase& c, uint64_t i) {
          if (c.forward.flops > 1e6) return;
          draw_order(mode, i, 0);
          const Result all =
              run(stream, c, c.apply, mode.storage, Numbers::Normal, GradMode::Overwrite);
          for (size_t only = 0; only < all.gradients.size(); ++only) {
            INFO("only input " << only);
            CHECK(difference(only_gradient(stream, c, mode.storage, only), all.gradients[only],
                             std::max(mode.tolerance, c.tolerance)) == "");
          }
        });
      }
}

// Sums over thousands of products and the largest tiles, which the cases above do not have. In f32
// the products go by other kernels.
TEST_CASE("convolutions of whole networks in bf16 equal those in f32", "[cuda][slow]") {
  for (const DeviceType type : cuda_device_types()) {
    const simt::ScopedOptions restore(simt::options());
    simt::options().profile = simt::profile_of(90);
    // The host model takes seconds for what a GPU does in microseconds.
    const std::string network = type == DeviceType::simt ? "quick " : "lesson ";
    const double most = type == DeviceType::simt ? 1e9 : 1e12;
    int count = 0;
    for (const OpCase& c : all_cases().benchmarks) {
      // Others store results on the way.
      if (!c.conv || c.conv->R != 3 || !c.name.starts_with(network)) continue;
      if (c.forward.flops > most) continue;
      INFO(name_of(type) << ' ' << c.op << ' ' << c.name);
      ++count;
      const auto result = [&](DType storage) {
        Stream stream(poisoned(type));
        return run(stream, c, c.apply, storage, Numbers::Normal, GradMode::Overwrite, DType::bf16);
      };
      CHECK(difference(result(DType::bf16), result(DType::f32), kBf16.tolerance) == "");
    }
    CHECK(count >= 4);
  }
}
