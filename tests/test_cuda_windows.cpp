// Index arithmetic of the CUDA kernels past 2^31 elements: the last blocks of launches over address
// space (tests/huge.h), against the scalar definition of what they write.
#include <catch2/catch.hpp>

#include "kernels/cuda/index.h"
#include "tests/huge.h"

using namespace tessera;

namespace {

constexpr GradMode kModes[] = {GradMode::Overwrite, GradMode::Accumulate};

// Calls test(dtype, channels) for both storage types, with channels that come in packs and others.
template <class Test>
void for_each_layout(Test test) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t C : {8, 9}) {
      INFO(name_of(dtype) << ", " << C << " channels");
      test(dtype, C);
    }
}

// The last pixels of a small image [N,H,W,C] and the four pixels of each in [N,2H,2W,C].
struct LastPixels {
  int64_t N, H, W;
  static constexpr int64_t kCount = 3;
  int64_t n() const { return N - 1; }
  int64_t h() const { return H - 1; }
  template <class Visit>
  void for_each(Visit visit) const {
    for (int64_t w = W - kCount; w < W; ++w) visit(w);
  }
  // Fills the pixels of the small or the large image.
  void fill(Huge& x, bool large) const {
    if (!large) return x.fill_from(x.index(n(), h(), W - kCount, 0));
    for (int64_t row : {2 * H - 2, 2 * H - 1}) {
      const int64_t first = x.index(n(), row, 2 * (W - kCount), 0);
      x.fill(first, first + 2 * kCount * x.tensor.dim(3));
    }
  }
};

}  // namespace

TEST_CASE("Divisor divides as the processor does", "[cuda]") {
  std::vector<int64_t> numbers{1, 2, 3, 5, 7, 10, 641, 6700417, INT64_MAX - 1, INT64_MAX};
  for (int bit = 2; bit < 63; ++bit)
    for (int64_t step : {-1, 0, 1}) numbers.push_back((int64_t{1} << bit) + step);
  for (uint64_t i = 1; i < 200; ++i)
    numbers.push_back(int64_t(i * 0x9E3779B97F4A7C15 >> (1 + i % 60)));
  int wrong = 0;
  for (int64_t d : numbers) {
    if (d == 0) continue;
    const simt::Divisor divisor(d);
    for (int64_t n : numbers)
      // The quotient changes at multiples of d.
      for (int64_t x : {n, n / d * d, n / d * d - 1, int64_t{0}}) {
        if (x < 0) continue;
        int64_t quotient = x;
        const int64_t remainder = divisor.divide(quotient);
        wrong += quotient != x / d || remainder != x % d;
      }
  }
  CHECK(wrong == 0);
}

TEST_CASE("elementwise kernels past 2^31 elements", "[cuda][huge]") {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t n : {k2e31 + 1024, k2e31 + 1021}) {
      INFO(name_of(dtype) << ' ' << n);
      const double tolerance = dtype == DType::f32 ? 1e-5 : 1e-2;
      const int64_t first = n - 600;
      HugeStream stream;
      Huge x(stream, {n}, dtype), y(stream, {n}, dtype), sum(stream, {n}, dtype);
      HugeGrad dx(stream, {n}, dtype, GradMode::Accumulate);
      for (Huge* input : {&x, static_cast<Huge*>(&dx)}) input->fill_from(first);
      activation_fwd(stream, Activation::Gelu, x.tensor, y.tensor);
      activation_bwd(stream, Activation::Gelu, x.tensor, x.tensor, dx.grad());
      add_fwd(stream, x.tensor, y.tensor, sum.tensor);
      stream.synchronize();
      CHECK(y.difference(first, n, tolerance, [&](int64_t i) { return exact_gelu(x.number(i)); }) ==
            "");
      CHECK(sum.difference(first, n, tolerance, [&](int64_t i) { return x.number(i) + y.at(i); }) ==
            "");
      CHECK(dx.difference(first, n, tolerance, [&](int64_t i) {
        return dx.before(i) + x.number(i) * exact_gelu_slope(x.number(i));
      }) == "");
      sum.fill_from(first);
      add_bwd(stream, x.tensor, {sum.tensor, GradMode::Accumulate});
      stream.synchronize();
      CHECK(sum.difference(first, n, tolerance,
                           [&](int64_t i) { return sum.number(i) + x.number(i); }) == "");
    }
}

TEST_CASE("space_to_channel and its inverse past 2^31 elements", "[cuda][huge]") {
  for_each_layout([](DType dtype, int64_t C) {
    for (GradMode mode : kModes) {
      const LastPixels last{4, 4501, 5003};
      const Shape space{4, 9002, 10006, C}, channels{4, 4501, 5003, 4 * C};
      HugeStream stream;
      Huge x(stream, space, dtype), z(stream, channels, dtype);
      HugeGrad y(stream, channels, dtype, mode), dx(stream, space, dtype, mode);
      REQUIRE(x.tensor.numel() > k2e31);
      for (Huge* large : {&x, static_cast<Huge*>(&dx)}) last.fill(*large, true);
      for (Huge* small : {&z, static_cast<Huge*>(&y)}) last.fill(*small, false);
      space_to_channel(stream, x.tensor, y.grad());
      channel_to_space(stream, z.tensor, dx.grad());
      stream.synchronize();
      int wrong = 0;
      last.for_each([&](int64_t w) {
        for (int64_t c = 0; c < C; ++c)
          for (int p = 0; p < 4; ++p) {
            const int64_t i = x.index(last.n(), 2 * last.h() + p / 2, 2 * w + p % 2, c),
                          j = y.index(last.n(), last.h(), w, 4 * c + p);
            wrong += y.at(j) != y.before(j) + x.number(i);
            wrong += dx.at(i) != dx.before(i) + z.number(j);
          }
      });
      CHECK(wrong == 0);
    }
  });
}

TEST_CASE("upsample_nearest past 2^31 elements", "[cuda][huge]") {
  for_each_layout([](DType dtype, int64_t C) {
    for (GradMode mode : kModes) {
      const LastPixels last{3, 9001, 10007};
      const Shape small{3, 9001, 10007, C}, large{3, 18002, 20014, C};
      HugeStream stream;
      Huge x(stream, small, dtype), y(stream, large, dtype), dy(stream, large, dtype);
      HugeGrad dx(stream, small, dtype, mode);
      REQUIRE(x.tensor.numel() > k2e31);
      for (Huge* input : {&x, static_cast<Huge*>(&dx)}) last.fill(*input, false);
      last.fill(dy, true);
      upsample_nearest_fwd(stream, x.tensor, y.tensor);
      upsample_nearest_bwd(stream, dy.tensor, dx.grad());
      stream.synchronize();
      int wrong = 0;
      last.for_each([&](int64_t w) {
        for (int64_t c = 0; c < C; ++c) {
          const int64_t i = x.index(last.n(), last.h(), w, c);
          double sum = dx.before(i);
          for (int p = 0; p < 4; ++p) {
            const int64_t j = y.index(last.n(), 2 * last.h() + p / 2, 2 * w + p % 2, c);
            sum += dy.number(j);
            wrong += y.at(j) != x.number(i);
          }
          wrong += dx.at(i) != sum;
        }
      });
      CHECK(wrong == 0);
    }
  });
}

TEST_CASE("pooling past 2^31 elements", "[cuda][huge]") {
  for_each_layout([](DType dtype, int64_t C) {
    for (Pooling pooling : {Pooling::Max, Pooling::Average})
      for (GradMode mode : kModes) {
        const LastPixels last{3, 9001, 10007};
        const Shape small{3, 9001, 10007, C}, large{3, 18002, 20014, C};
        HugeStream stream;
        Huge x(stream, large, dtype), y(stream, small, dtype), dy(stream, small, dtype);
        HugeGrad dx(stream, large, dtype, mode);
        REQUIRE(y.tensor.numel() > k2e31);
        for (Huge* input : {&x, static_cast<Huge*>(&dx)}) last.fill(*input, true);
        last.fill(dy, false);
        pool_fwd(stream, pooling, x.tensor, y.tensor);
        pool_bwd(stream, pooling, x.tensor, dy.tensor, dx.grad());
        stream.synchronize();
        int wrong = 0;
        last.for_each([&](int64_t w) {
          for (int64_t c = 0; c < C; ++c) {
            const int64_t i = y.index(last.n(), last.h(), w, c);
            int64_t at[4];
            for (int p = 0; p < 4; ++p)
              at[p] = x.index(last.n(), 2 * last.h() + p / 2, 2 * w + p % 2, c);
            int best = 0;
            double sum = 0;
            for (int p = 0; p < 4; ++p) {
              if (x.number(at[p]) > x.number(at[best])) best = p;
              sum += x.number(at[p]);
            }
            const bool max = pooling == Pooling::Max;
            wrong += y.at(i) != (max ? x.number(at[best]) : sum / 4);
            for (int p = 0; p < 4; ++p) {
              const double share = max ? (p == best ? dy.number(i) : 0) : dy.number(i) / 4;
              wrong += dx.at(at[p]) != dx.before(at[p]) + share;
            }
          }
        });
        CHECK(wrong == 0);
      }
  });
}

TEST_CASE("concat_channels past 2^31 elements", "[cuda][huge]") {
  for_each_layout([](DType dtype, int64_t A) {
    for (GradMode mode : kModes) {
      const int64_t N = 4, H = 8209, W = 8211, B = 2 * A, C = A + B, w = W - 3;
      HugeStream stream;
      Huge a(stream, {N, H, W, A}, dtype), b(stream, {N, H, W, B}, dtype),
          y(stream, {N, H, W, C}, dtype), dy(stream, {N, H, W, C}, dtype);
      HugeGrad da(stream, {N, H, W, A}, dtype, mode), db(stream, {N, H, W, B}, dtype, mode);
      REQUIRE(a.tensor.numel() > k2e31);
      for (Huge* input : {&a, &b, &dy, static_cast<Huge*>(&da), static_cast<Huge*>(&db)})
        input->fill_from(input->index(N - 1, H - 1, w, 0));
      concat_channels_fwd(stream, a.tensor, b.tensor, y.tensor);
      concat_channels_bwd(stream, dy.tensor, da.grad(), db.grad());
      stream.synchronize();
      const auto part = [&](const Huge& in_a, const Huge& in_b, int64_t i) {
        const int64_t pixel = i / C, c = i % C;
        return c < A ? std::pair(&in_a, pixel * A + c) : std::pair(&in_b, pixel * B + c - A);
      };
      const int64_t first = y.index(N - 1, H - 1, w, 0), end = y.tensor.numel();
      CHECK(y.difference(first, end, 0, [&](int64_t i) {
        const auto [input, j] = part(a, b, i);
        return input->number(j);
      }) == "");
      int wrong = 0;
      for (int64_t i = first; i < end; ++i) {
        const auto [grad, j] = part(da, db, i);
        wrong += grad->at(j) != static_cast<const HugeGrad*>(grad)->before(j) + dy.number(i);
      }
      CHECK(wrong == 0);
    }
  });
}

TEST_CASE("concat_upsample past 2^31 elements", "[cuda][huge]") {
  for_each_layout([](DType dtype, int64_t channels) {
    for (GradMode mode : kModes) {
      const int64_t N = 4, H = 4105, W = 4109, A = 4 * channels, B = 5 * channels;
      const LastPixels last{N, H, W};
      const Shape low_shape{N, H, W, A}, skip_shape{N, 2 * H, 2 * W, B},
          shape{N, 2 * H, 2 * W, A + B};
      HugeStream stream;
      Huge low(stream, low_shape, dtype), skip(stream, skip_shape, dtype), y(stream, shape, dtype),
          dy(stream, shape, dtype);
      HugeGrad dlow(stream, low_shape, dtype, mode), dskip(stream, skip_shape, dtype, mode);
      REQUIRE(low.tensor.numel() > k2e31);
      for (Huge* small : {&low, static_cast<Huge*>(&dlow)}) last.fill(*small, false);
      for (Huge* large : {&skip, &dy, static_cast<Huge*>(&dskip)}) last.fill(*large, true);
      concat_upsample_fwd(stream, low.tensor, skip.tensor, y.tensor);
      concat_upsample_bwd(stream, dy.tensor, dlow.grad(), dskip.grad());
      stream.synchronize();
      int wrong = 0;
      last.for_each([&](int64_t w) {
        const auto in_y = [&](int p, int64_t c) {
          return y.index(last.n(), 2 * last.h() + p / 2, 2 * w + p % 2, c);
        };
        for (int64_t c = 0; c < A; ++c) {
          const int64_t i = low.index(last.n(), last.h(), w, c);
          double sum = dlow.before(i);
          for (int p = 0; p < 4; ++p) {
            wrong += y.at(in_y(p, c)) != low.number(i);
            sum += dy.number(in_y(p, c));
          }
          wrong += dlow.at(i) != sum;
        }
        for (int64_t c = 0; c < B; ++c)
          for (int p = 0; p < 4; ++p) {
            const int64_t i = skip.index(last.n(), 2 * last.h() + p / 2, 2 * w + p % 2, c);
            wrong += y.at(in_y(p, A + c)) != skip.number(i);
            wrong += dskip.at(i) != dskip.before(i) + dy.number(in_y(p, A + c));
          }
      });
      CHECK(wrong == 0);
    }
  });
}
