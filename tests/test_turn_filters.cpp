// turn_filters, which only moves elements: exactly as defined, on all devices.
#include <catch2/catch.hpp>

#include "autograd/parameters.h"
#include "autograd/residual_block.h"
#include "tests/cuda_devices.h"
#include "tests/huge.h"
#include "tests/op_runner.h"

using namespace tessera;

namespace {

struct Size {
  Shape w;
  int64_t first;  // channel that is wanted
};

Values turned(const Values& w, int64_t first) {
  const int64_t K = w.shape[0], R = w.shape[1], S = w.shape[2], C = w.shape[3];
  Values result{{C - first, R, S, K}, {}};
  for (int64_t c = first; c < C; ++c)
    for (int64_t r = R; r-- > 0;)
      for (int64_t s = S; s-- > 0;)
        for (int64_t k = 0; k < K; ++k)
          result.data.push_back(w.data[size_t(((k * R + r) * S + s) * C + c)]);
  return result;
}

// All of `sizes` at once.
void check(Stream& stream, DType dtype, const std::vector<Size>& sizes) {
  std::vector<TurnedFilter> filters;
  std::vector<Values> right;
  for (const auto& [shape, first] : sizes) {
    const Values w = as_bf16(normal(concat("w", filters.size()), shape));
    right.push_back(turned(w, first));
    filters.push_back(
        {tensor_of(stream, w, dtype), Tensor::empty(stream, right.back().shape, dtype)});
  }
  turn_filters(stream, filters);
  for (size_t i = 0; i < sizes.size(); ++i) {
    INFO(i << " of " << sizes.size() << ": " << sizes[i].w << " from " << sizes[i].first);
    CHECK(values_of(stream, filters[i].turned).data == right[i].data);
  }
}

}  // namespace

TEST_CASE("filters are turned around", "[cuda][small]") {
  on_all_devices([](Stream& stream) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f64}) {
      if (dtype == DType::f64 && stream.device().type() != DeviceType::cpu) continue;
      INFO(name_of(dtype));
      check(stream, dtype, {});
      for (const Shape& w : {Shape{1, 1, 1, 1},
                             {5, 3, 3, 7},
                             {3, 2, 5, 4},
                             {64, 1, 1, 64},
                             {65, 1, 2, 130},
                             {130, 3, 1, 63},
                             {72, 3, 3, 136},
                             {0, 3, 3, 4},
                             {4, 3, 3, 0},
                             {4, 0, 3, 4}})
        check(stream, dtype, {{w, 0}});
      check(stream, dtype, {{{9, 3, 3, 70}, 3}, {{70, 3, 3, 9}, 9}, {{2, 1, 1, 3}, 2}});
      check(stream, dtype, {{{72, 3, 3, 48}, 16}, {{8, 1, 1, 8}, 0}, {{64, 3, 2, 72}, 8}});
    }
  });
}

TEST_CASE("more filters than a launch takes are turned around", "[cuda]") {
  on_all_devices([](Stream& stream) {
    for (const size_t count : {31, 32, 33, 70}) {
      std::vector<Size> sizes;
      for (size_t i = 0; i < count; ++i)
        sizes.push_back({{int64_t(i % 5), 2, 1, int64_t(70 - i)}, int64_t(i % 3)});
      check(stream, DType::bf16, sizes);
    }
  });
}

// An up block without a shortcut convolution (or not fused) joins its input, which the forms of its
// filter are not for.
TEST_CASE("a block that joins its input has no use for a filter's forms", "[cuda]") {
  const simt::ScopedOptions restore(simt::options());
  Stream stream(poisoned(DeviceType::simt));
  const auto input = [&](const char* name, const Shape& shape, DType dtype = DType::bf16) {
    Var var = Var::leaf(tensor_of(stream, as_bf16(normal(name, shape)), dtype), true);
    var.slot->dtype = shape.rank() == 4 && shape[1] == 3 ? DType::f32 : dtype;
    return var;
  };
  for (const ops::Fusion fusion : {ops::Fusion::On, ops::Fusion::Off}) {
    const auto gradient = [&](bool with_forms) {
      const auto vector = [&](const char* name) { return input(name, {24}, DType::f32); };
      Var w = input("w1", {24, 3, 3, 24});
      std::vector<TurnedFilter> turned;
      if (with_forms) {
        w.forms.phases = Tensor::empty(stream, {24, 4, 4, 16}, DType::bf16);
        upcat_phases(stream, std::vector<PhasedFilter>{{w.value, w.forms.phases}});
        add_turned_forms(stream, w.value, 16, w.forms, turned);
        REQUIRE(turned.size() == 2);
      }
      turn_filters(stream, turned);
      const ops::ResidualBlockArgs args{{{4}},
                                        w,
                                        vector("b1"),
                                        vector("g1"),
                                        vector("e1"),
                                        input("w2", {24, 3, 3, 24}),
                                        vector("b2"),
                                        vector("g2"),
                                        vector("e2"),
                                        {},
                                        {}};
      const Var x = input("x", {1, 5, 6, 16}), skip = input("skip", {1, 10, 12, 8});
      Tape tape(stream, Tape::Mode::Train);
      const Var y = ops::residual_block(tape, fusion, x, skip, input("t", {1, 24}), args);
      tape.backward_from(y, input("dy", {1, 10, 12, 24}).value);
      return std::vector{values_of(stream, y.value).data, values_of(stream, x.grad()).data,
                         values_of(stream, skip.grad()).data};
    };
    CHECK(gradient(true) == gradient(false));
  }
}

TEST_CASE("turn_filters past 2^31 elements", "[cuda][huge]") {
  constexpr int64_t K = 80, C = int64_t{1} << 22, kFirst = 8;
  static_assert(K * 9 * (C - kFirst) > k2e31);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    HugeStream stream(2 * 9);  // of the last 64 channels
    Huge w(stream, {K, 3, 3, C}, dtype), turned(stream, {C - kFirst, 3, 3, K}, dtype);
    for (int64_t line = 1; line <= K * 9; ++line) w.fill(line * C - 8, line * C);
    const std::vector<TurnedFilter> one{{w.tensor, turned.tensor}};
    turn_filters(stream, one);
    stream.synchronize();
    int wrong = 0;
    for (int64_t c = C - 8; c < C; ++c)
      for (int64_t tap = 0; tap < 9; ++tap)
        for (int64_t k = 0; k < K; ++k)
          wrong += turned.at(((c - kFirst) * 9 + 8 - tap) * K + k) != w.at((k * 9 + tap) * C + c);
    CHECK(wrong == 0);
  }
}
