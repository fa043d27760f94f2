// Index arithmetic of the CUDA kernels that sum over pixels, past 2^31 elements: the last blocks of
// launches over address space (tests/huge.h), against the definition. Each image is larger than
// 2^31 elements, and the windows reach the last channels of the last one's last tiles. Partial sums
// of tiles that did not run are zeros, which stands for pixels equal to the image's first one in
// the moments, and for gradients of zero in the others. The parameters' gradients are wanted by
// themselves: their blocks would be the last ones of dx's launch.
#include <catch2/catch.hpp>

#include "tests/huge.h"

using namespace tessera;

namespace {

constexpr int64_t N = 2, H = 513, W = 513, P = H * W;
constexpr int64_t kPixels = 100;     // the last ones, which hold numbers
constexpr int64_t kBefore = 2000;    // and these before them the first pixel's value: more than run
constexpr uint64_t kBlocks = 8;      // a multiple of 2 N: sums have N or 2 N blocks a channel
constexpr double kFirstPixel = 0.5;  // no number

// Channels that come in packs and others, all in groups.
struct Layout {
  DType dtype;
  int64_t C, groups;
  int64_t group() const { return C / groups; }
};
constexpr Layout kLayouts[] = {{DType::f32, 8192, 1024},
                               {DType::f32, 8190, 1365},
                               {DType::bf16, 8192, 1024},
                               {DType::bf16, 8190, 1365}};
static_assert(P * 8190 > k2e31);

// Calls visit(index of the element, channel) for the last image's last pixels' last group.
template <class Visit>
void for_last(const Layout& layout, int64_t pixels, Visit visit) {
  for (int64_t pixel = N * P - pixels; pixel < N * P; ++pixel)
    for (int64_t c = layout.C - layout.group(); c < layout.C; ++c) visit(pixel * layout.C + c, c);
}
void fill_last(const Layout& layout, Huge& x) {
  for_last(layout, kPixels, [&](int64_t i, int64_t) { x.set(i, x.number(i)); });
}

bool near(double got, double wanted, double tolerance) {
  return std::abs(got - wanted) <= tolerance * std::max(1.0, std::abs(wanted));
}

struct Moments {
  double mean, rstd;
  Moments(const Layout& layout, const Huge& x, double eps) {
    const double n = double(P * layout.group());
    double sum = kFirstPixel * (n - double(kPixels * layout.group()));
    for_last(layout, kPixels, [&](int64_t i, int64_t) { sum += x.at(i); });
    mean = sum / n;
    double m2 = (n - double(kPixels * layout.group())) * std::pow(kFirstPixel - mean, 2);
    for_last(layout, kPixels, [&](int64_t i, int64_t) { m2 += std::pow(x.at(i) - mean, 2); });
    rstd = 1 / std::sqrt(m2 / n + eps);
  }
};

// group_norm, or group_norm_act with t and a residual.
struct Norm {
  const Layout& layout;
  bool fused;
  HugeStream stream{kBlocks, HugeStream::kReserveSums};
  Shape shape{N, H, W, layout.C};
  NormAct spec{{int(layout.groups), 1e-5f}};
  Huge x{stream, shape, layout.dtype}, y{stream, shape, layout.dtype},
      dy{stream, shape, layout.dtype}, residual{stream, shape, layout.dtype};
  Huge gamma{stream, {layout.C}, DType::f32}, beta{stream, {layout.C}, DType::f32},
      t{stream, {N, layout.C}, layout.dtype}, moments{stream, {N, layout.groups, 2}, DType::f32};
  HugeGrad dx{stream, shape, layout.dtype, GradMode::Accumulate},
      dt{stream, {N, layout.C}, layout.dtype, GradMode::Accumulate},
      dgamma{stream, {layout.C}, DType::f32, GradMode::Accumulate},
      dbeta{stream, {layout.C}, DType::f32, GradMode::Accumulate};

  void run() {
    for_last(layout, kBefore, [&](int64_t i, int64_t) { x.set(i, kFirstPixel); });
    for (int64_t c = layout.C - layout.group(); c < layout.C; ++c)
      x.set((N - 1) * P * layout.C + c, kFirstPixel);
    for (Huge* input : {&x, &dy, &residual, static_cast<Huge*>(&dx)}) fill_last(layout, *input);
    for (Huge* input :
         {static_cast<Huge*>(&dt), static_cast<Huge*>(&dgamma), static_cast<Huge*>(&dbeta)})
      input->fill();
    // z is of the order of 1.
    for (int64_t c = 0; c < layout.C; ++c) {
      gamma.set(c, gamma.number(c) / 256);
      beta.set(c, beta.number(c) / 8);
      t.set((N - 1) * layout.C + c, t.number(c) / 8);
    }
    if (fused) {
      group_norm_act_fwd(stream, spec, x.tensor, gamma.tensor, beta.tensor, t.tensor,
                         residual.tensor, y.tensor, moments.tensor);
      const auto backward = [&](Grad dx, Grad dgamma, Grad dbeta, Grad dt) {
        group_norm_act_bwd(stream, spec, x.tensor, moments.tensor, gamma.tensor, beta.tensor,
                           t.tensor, dy.tensor, dx, dgamma, dbeta, dt);
      };
      backward(dx.grad(), {}, {}, dt.grad());
      backward({}, dgamma.grad(), dbeta.grad(), {});
    } else {
      group_norm_fwd(stream, spec.norm, x.tensor, gamma.tensor, beta.tensor, y.tensor,
                     moments.tensor);
      const auto backward = [&](Grad dx, Grad dgamma, Grad dbeta) {
        group_norm_bwd(stream, spec.norm, x.tensor, moments.tensor, gamma.tensor, dy.tensor, dx,
                       dgamma, dbeta);
      };
      backward(dx.grad(), {}, {});
      backward({}, dgamma.grad(), dbeta.grad());
    }
    stream.synchronize();
  }

  void check(double tolerance) const {
    const Moments m(layout, x, spec.norm.eps);
    const int64_t last = moments.tensor.numel() - 2, row = (N - 1) * layout.C;
    CHECK(moments.at(last) == Approx(m.mean).epsilon(1e-5));
    CHECK(moments.at(last + 1) == Approx(m.rstd).epsilon(1e-5));
    const auto normalised = [&](int64_t i) { return (x.at(i) - m.mean) * m.rstd; };
    const auto z = [&](int64_t i, int64_t c) {
      return normalised(i) * gamma.at(c) + beta.at(c) + (fused ? t.at(row + c) : 0);
    };
    const auto dz = [&](int64_t i, int64_t c) {
      return dy.at(i) * (fused ? exact_gelu_slope(z(i, c)) : 1);
    };
    std::vector<double> sums(size_t(layout.C)), products(size_t(layout.C));
    double sum = 0, product = 0;
    for_last(layout, kPixels, [&](int64_t i, int64_t c) {
      sums[size_t(c)] += dz(i, c);
      products[size_t(c)] += dz(i, c) * normalised(i);
      sum += dz(i, c) * gamma.at(c) / double(P * layout.group());
      product += dz(i, c) * gamma.at(c) * normalised(i) / double(P * layout.group());
    });
    int wrong = 0;
    for_last(layout, kPixels, [&](int64_t i, int64_t c) {
      const double out = fused ? exact_gelu(z(i, c)) + residual.at(i) : z(i, c);
      const double in = m.rstd * (gamma.at(c) * dz(i, c) - sum - normalised(i) * product);
      wrong += !near(y.at(i), out, tolerance);
      wrong += !near(dx.at(i), dx.before(i) + in, tolerance);
    });
    for (int64_t c = layout.C - layout.group(); c < layout.C; ++c) {
      wrong += !near(dbeta.at(c), dbeta.before(c) + sums[size_t(c)], 1e-4);
      wrong += !near(dgamma.at(c), dgamma.before(c) + products[size_t(c)], 1e-4);
      wrong += fused && !near(dt.at(row + c), dt.before(row + c) + sums[size_t(c)], tolerance);
    }
    CHECK(wrong == 0);
  }
};

}  // namespace

TEST_CASE("group_norm and group_norm_act past 2^31 elements", "[cuda][huge]") {
  for (const Layout& layout : kLayouts)
    for (bool fused : {false, true}) {
      INFO(name_of(layout.dtype) << ", " << layout.C << " channels" << (fused ? ", fused" : ""));
      Norm norm{layout, fused};
      norm.run();
      norm.check(layout.dtype == DType::f32 ? 1e-5 : 1e-2);
    }
}

TEST_CASE("add_broadcast past 2^31 elements", "[cuda][huge]") {
  for (const Layout& layout : kLayouts) {
    INFO(name_of(layout.dtype) << ", " << layout.C << " channels");
    const Shape shape{N, H, W, layout.C};
    HugeStream stream(kBlocks, HugeStream::kReserveSums);
    Huge x(stream, shape, layout.dtype), t(stream, {N, layout.C}, layout.dtype),
        y(stream, shape, layout.dtype);
    HugeGrad dt(stream, {N, layout.C}, layout.dtype, GradMode::Accumulate);
    fill_last(layout, x);
    t.fill();
    dt.fill();
    add_broadcast_fwd(stream, x.tensor, t.tensor, y.tensor);
    add_broadcast_bwd_t(stream, x.tensor, dt.grad());
    stream.synchronize();
    const int64_t row = (N - 1) * layout.C;
    std::vector<double> sums(size_t(layout.C));
    int wrong = 0;
    for_last(layout, kPixels, [&](int64_t i, int64_t c) {
      sums[size_t(c)] += x.number(i);
      wrong += y.at(i) != x.number(i) + t.number(row + c);
    });
    for (int64_t c = layout.C - layout.group(); c < layout.C; ++c)
      wrong += dt.at(row + c) != dt.rounded(dt.before(row + c) + sums[size_t(c)]);
    CHECK(wrong == 0);
  }
}
