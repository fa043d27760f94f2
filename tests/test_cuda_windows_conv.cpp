// Index arithmetic of the CUDA convolutions past 2^31 elements: the last blocks of launches over
// address space (tests/huge.h), against the definition. Numbers are small integers: all is exact.
//
// fwd and bwd_data read few pixels a block, so there the pixels are many. A block of bwd_weight
// reads all pixels of its part, so there the channels are many, and the parts just one: with more
// than one, a block would have to read some 10^5 pixels to come past 2^31 elements. Where a part
// begins is a count of pixels all the same, and these are below 2^30.
#include <catch2/catch.hpp>

#include "tests/huge.h"

using namespace tessera;

namespace {

// The mainloops: plain f32, tensor cores in tf32 and in bf16.
struct Path {
  const char* name;
  DType dtype;
  Math math;
};
constexpr Path kPaths[] = {{"f32", DType::f32, Math::f32},
                           {"tf32", DType::f32, Math::tf32},
                           {"bf16", DType::bf16, Math::f32}};
constexpr ConvSpec kSame{1, 1, 1};  // 3x3

struct ConvStream : HugeStream {
  explicit ConvStream(const Path& path) : HugeStream(2, kReserveSums) { math = path.math; }
};

// Images of many pixels, of which the last kPixels are looked at, with what their windows reach.
constexpr int64_t N = 3, H = 4730, W = 4732, kPixels = 8;
constexpr int64_t kManyChannels = 32, kFewChannels = 8;  // packs; and odd numbers just above
static_assert(N * H * W * kManyChannels > k2e31 && N * H * W < int64_t{1} << 30);

void fill_last_windows(Huge& x) { x.fill_from(x.index(N - 1, H - 2, W - kPixels - 1, 0)); }

// Few pixels, the last kPixels of which are in the last tile of any height or width; numbers in the
// last channels of each.
constexpr int64_t kRows = 18, kColumns = 40;
constexpr int64_t kMany = int64_t{1} << 22, kFew = 64, kOdd = 21;
// The last tap meets no pixel of dy in the last row.
static_assert((kRows - 2) * kColumns * kMany > k2e31 && kFew * 9 * kMany > k2e31);

void fill_last_channels(Huge& x, int64_t count) {
  const int64_t C = x.tensor.dim(3);
  for (int64_t end = C; end <= x.tensor.numel(); end += C) x.fill(end - std::min(count, C), end);
}

// The elements of an image and the zeros around it.
auto padded(const Huge& x) {
  return [&x](int64_t n, int64_t h, int64_t w, int64_t c) {
    const bool inside = h >= 0 && h < x.tensor.dim(1) && w >= 0 && w < x.tensor.dim(2);
    return inside ? x.at(x.index(n, h, w, c)) : 0.0;
  };
}
// concat(upsample(low), skip) and the zeros around it.
auto padded(const Huge& low, const Huge& skip) {
  return [&low, &skip](int64_t n, int64_t h, int64_t w, int64_t c) {
    const int64_t A = low.tensor.dim(3);
    return c < A ? padded(low)(n, h >> 1, w >> 1, c) : padded(skip)(n, h, w, c - A);
  };
}

// x(n, h, w, c) w(k, r, s, c) summed over the window of a pixel.
template <class Input>
double window_sum(const Huge& w, int64_t n, int64_t h, int64_t q, int64_t k, const Input& x) {
  double sum = 0;
  for (int64_t r = -1; r <= 1; ++r)
    for (int64_t s = -1; s <= 1; ++s)
      for (int64_t c = 0; c < w.tensor.dim(3); ++c)
        sum += x(n, h + r, q + s, c) * w.at(w.index(k, r + 1, s + 1, c));
  return sum;
}
// dy(n, p, q, k) w(k, r, s, c) summed over the windows that a pixel is in.
template <class Up>
double reached_sum(const Huge& w, int64_t n, int64_t h, int64_t q, int64_t c, const Up& dy) {
  double sum = 0;
  for (int64_t r = -1; r <= 1; ++r)
    for (int64_t s = -1; s <= 1; ++s)
      for (int64_t k = 0; k < w.tensor.dim(0); ++k)
        sum += dy(n, h + r, q + s, k) * w.at(w.index(k, 1 - r, 1 - s, c));
  return sum;
}
// dy(p, k) x(p + tap (1, 1), c) summed over the pixels, or every second row and column: dw of the
// filter's last tap.
template <class Input>
double last_tap_sum(const Huge& dy, int64_t k, int64_t c, const Input& x, bool odd_only = false) {
  double sum = 0;
  for (int64_t h = odd_only; h + 1 < kRows; h += 1 + odd_only)
    for (int64_t w = odd_only; w + 1 < kColumns; w += 1 + odd_only)
      sum += dy.at(dy.index(0, h, w, k)) * x(0, h + 1, w + 1, c);
  return sum;
}

// The last of the rows and columns of dw, and of db, from the bias gradient's own kernels.
template <class Input>
void check_filter_grads(const HugeGrad& dw, const HugeGrad& db, const Huge& dy, int64_t channels,
                        const Input& x) {
  const int64_t K = dw.tensor.dim(0), C = dw.tensor.dim(3);
  int wrong = 0;
  for (int64_t k = K - 16; k < K; ++k) {
    double sum = db.before(k);
    for (int64_t pixel = 0; pixel < kRows * kColumns; ++pixel) sum += dy.at(pixel * K + k);
    wrong += db.at(k) != sum;
    for (int64_t c = C - channels; c < C; ++c) {
      const int64_t i = dw.index(k, 2, 2, c);
      wrong += dw.at(i) != dw.before(i) + last_tap_sum(dy, k, c, x);
    }
  }
  CHECK(wrong == 0);
}
void fill_filter_grads(HugeGrad& dw, HugeGrad& db) {
  db.fill();
  for (int64_t k = dw.tensor.dim(0) - 16; k < dw.tensor.dim(0); ++k)
    dw.fill(dw.index(k, 2, 3, 0) - 32, dw.index(k, 2, 3, 0));
}

}  // namespace

TEST_CASE("conv2d_fwd and bwd_data past 2^31 elements", "[cuda][huge]") {
  for (const Path& path : kPaths)
    for (int64_t odd : {0, 1})
      for (bool many : {true, false}) {  // of channels of x, or else of y
        const int64_t C = odd + (many ? kManyChannels : kFewChannels),
                      K = odd + (many ? kFewChannels : kManyChannels);
        INFO(path.name << ", " << C << " to " << K << " channels");
        ConvStream stream(path);
        Huge x(stream, {N, H, W, C}, path.dtype), w(stream, {K, 3, 3, C}, path.dtype),
            b(stream, {K}, DType::f32), y(stream, {N, H, W, K}, path.dtype),
            dy(stream, {N, H, W, K}, path.dtype);
        HugeGrad dx(stream, {N, H, W, C}, path.dtype, GradMode::Accumulate);
        for (Huge* input : {&x, &dy, static_cast<Huge*>(&dx)}) fill_last_windows(*input);
        for (Huge* input : {&w, &b}) input->fill();
        Huge y_too(stream, {N, H, W, K}, path.dtype);
        MomentsOut moments{{1}, Tensor::empty(stream, {N, 1, 2})};
        conv2d_fwd(stream, kSame, x.tensor, w.tensor, b.tensor, y.tensor);
        conv2d_fwd(stream, kSame, x.tensor, w.tensor, b.tensor, y_too.tensor, &moments);
        conv2d_bwd_data(stream, kSame, dy.tensor, w.tensor, dx.grad());
        stream.synchronize();
        CHECK(moments.made == (path.dtype == DType::bf16 && odd == 0));
        int wrong = 0;
        for (int64_t q = W - kPixels; q < W; ++q) {
          for (int64_t k = 0; k < K; ++k) {
            const int64_t i = y.index(N - 1, H - 1, q, k);
            const double right = y.rounded(b.at(k) + window_sum(w, N - 1, H - 1, q, k, padded(x)));
            wrong += y.at(i) != right;
            wrong += y_too.at(i) != right;
          }
          for (int64_t c = 0; c < C; ++c) {
            const int64_t i = dx.index(N - 1, H - 1, q, c);
            wrong += dx.at(i) !=
                     dx.rounded(dx.before(i) + reached_sum(w, N - 1, H - 1, q, c, padded(dy)));
          }
        }
        CHECK(wrong == 0);
      }
}

TEST_CASE("norm_gelu_conv2d_bwd past 2^31 elements", "[cuda][huge]") {
  constexpr int64_t C = kManyChannels, K = kFewChannels, kGroups = 4;
  HugeStream stream(N * kGroups, HugeStream::kReserveSums);  // all blocks that add up tiles
  Huge x(stream, {N, H, W, C}, DType::bf16), dy(stream, {N, H, W, K}, DType::bf16),
      w(stream, {K, 3, 3, C}, DType::bf16), t(stream, {N, C}, DType::bf16),
      gamma(stream, {C}, DType::f32), beta(stream, {C}, DType::f32),
      moments(stream, {N, kGroups, 2}, DType::f32);
  HugeGrad dx(stream, x.tensor.shape(), DType::bf16, GradMode::Overwrite);
  for (Huge* input : {&x, &dy}) fill_last_windows(*input);
  w.fill();
  // z is of the order of 1.
  for (Huge* input : {&t, &gamma, &beta})
    for (int64_t i = 0; i < input->tensor.numel(); ++i) input->set(i, input->number(i) / 8);
  for (int64_t i = 0; i < N * kGroups; ++i) {
    moments.set(2 * i, moments.number(i) / 8);
    moments.set(2 * i + 1, 0.25);
  }
  norm_gelu_conv2d_bwd(stream, {{kGroups}}, kSame, x.tensor, moments.tensor, gamma.tensor,
                       beta.tensor, t.tensor, w.tensor, dy.tensor, dx.grad(), {}, {}, {});
  stream.synchronize();
  int wrong = 0;
  for (int64_t q = W - kPixels; q < W; ++q)
    for (int64_t c = 0; c < C; ++c) {
      const int64_t i = x.index(N - 1, H - 1, q, c), m = 2 * ((N - 1) * kGroups + c / 8);
      const double a = moments.at(m + 1) * gamma.at(c);
      const double z = (x.at(i) - moments.at(m)) * a + beta.at(c) + t.at((N - 1) * C + c);
      const double right = a * reached_sum(w, N - 1, H - 1, q, c, padded(dy)) * exact_gelu_slope(z);
      // The means over so many pixels are next to nothing.
      wrong += !(std::abs(dx.at(i) - right) <= 1e-2 * std::abs(right) + 1e-2);
    }
  CHECK(wrong == 0);
}

TEST_CASE("conv2d with filters past 2^31 elements", "[cuda][huge]") {
  for (const Path& path : kPaths)
    for (int64_t odd : {int64_t{0}, kOdd}) {
      INFO(path.name << ", " << kFew + odd << " and " << kMany + odd << " channels");
      const Shape few{1, kRows, kColumns, kFew + odd}, many{1, kRows, kColumns, kMany + odd};
      ConvStream stream(path);
      Huge x(stream, few, path.dtype), w(stream, {many[3], 3, 3, few[3]}, path.dtype),
          b(stream, {many[3]}, DType::f32), y(stream, many, path.dtype),
          w_back(stream, {few[3], 3, 3, many[3]}, path.dtype);
      HugeGrad dx(stream, many, path.dtype, GradMode::Accumulate);
      x.fill();
      w.fill_from(w.index(many[3] - 16, 0, 0, 0));
      b.fill_from(many[3] - 16);
      fill_last_channels(w_back, 16);
      fill_last_channels(dx, 16);
      conv2d_fwd(stream, kSame, x.tensor, w.tensor, b.tensor, y.tensor);
      conv2d_bwd_data(stream, kSame, x.tensor, w_back.tensor, dx.grad());
      stream.synchronize();
      int wrong = 0;
      for (int64_t q = kColumns - kPixels; q < kColumns; ++q)
        for (int64_t c = many[3] - 16; c < many[3]; ++c) {
          const int64_t i = y.index(0, kRows - 1, q, c);
          wrong += y.at(i) != y.rounded(b.at(c) + window_sum(w, 0, kRows - 1, q, c, padded(x)));
          wrong += dx.at(i) !=
                   dx.rounded(dx.before(i) + reached_sum(w_back, 0, kRows - 1, q, c, padded(x)));
        }
      CHECK(wrong == 0);
    }
}

TEST_CASE("conv2d_bwd_weight past 2^31 elements", "[cuda][huge]") {
  for (const Path& path : kPaths)
    for (int64_t odd : {int64_t{0}, kOdd})
      for (bool many : {true, false}) {
        const int64_t C = odd + (many ? kMany : kFew), K = odd + (many ? kFew : kMany);
        INFO(path.name << ", " << C << " to " << K << " channels");
        ConvStream stream(path);
        Huge x(stream, {1, kRows, kColumns, C}, path.dtype),
            dy(stream, {1, kRows, kColumns, K}, path.dtype);
        HugeGrad dw(stream, {K, 3, 3, C}, DType::f32, GradMode::Accumulate),
            db(stream, {K}, DType::f32, GradMode::Accumulate);
        for (Huge* input : {&x, &dy}) fill_last_channels(*input, 24);
        fill_filter_grads(dw, db);
        conv2d_bwd_weight(stream, kSame, x.tensor, dy.tensor, dw.grad(), db.grad());
        stream.synchronize();
        check_filter_grads(dw, db, dy, 8, padded(x));
      }
}

// ---- upcat_conv2d. In bf16 with packs it takes the sub-pixel form, whose phases are given here:
// sums of few small integers, exact in bf16.
namespace {

struct UpcatInputs {
  Huge low, skip, w;
  Tensor phases;

  UpcatInputs(Stream& stream, const Path& path, int64_t A, int64_t B, int64_t K)
      : low(stream, {N, H / 2, W / 2, A}, path.dtype),
        skip(stream, {N, H, W, B}, path.dtype),
        w(stream, {K, 3, 3, A + B}, path.dtype) {
    low.fill_from(low.index(N - 1, H / 2 - 1, W / 2 - kPixels, 0));
    fill_last_windows(skip);
    w.fill();
    if (path.dtype != DType::bf16 || A % 8) return;
    phases = Tensor::empty(stream, {K, 4, 4, A}, DType::bf16);
    for (int64_t i = 0; i < phases.numel(); ++i) {
      const int64_t a = i % A, u = i / A / 2 % 2, v = i / A % 2, p = i / A / 8 % 2,
                    q = i / A / 4 % 2, k = i / A / 16;
      double sum = 0;
      for (int64_t r = 0; r < 3; ++r)
        for (int64_t s = 0; s < 3; ++s)
          if ((r + 1 - p) / 2 == u && (s + 1 - q) / 2 == v) sum += w.at(w.index(k, r, s, a));
      phases.data<bf16>()[i] = to_bf16(float(sum));
    }
  }
};

}  // namespace

TEST_CASE("upcat_conv2d_fwd past 2^31 elements", "[cuda][huge]") {
  for (const Path& path : kPaths)
    for (int64_t odd : {0, 1})
      for (bool many : {true, false}) {
        const int64_t A = odd + (many ? 4 * kManyChannels : kFewChannels),
                      B = odd + (many ? kManyChannels : kFewChannels),
                      K = odd + (many ? kFewChannels : kManyChannels);
        INFO(path.name << ", " << A << " and " << B << " to " << K << " channels");
        ConvStream stream(path);
        UpcatInputs in(stream, path, A, B, K);
        Huge b(stream, {K}, DType::f32), y(stream, {N, H, W, K}, path.dtype);
        b.fill();
        upcat_conv2d_fwd(stream, in.low.tensor, in.skip.tensor, in.w.tensor, in.phases, b.tensor,
                         y.tensor);
        stream.synchronize();
        int wrong = 0;
        for (int64_t q = W - kPixels; q < W; ++q)
          for (int64_t k = 0; k < K; ++k)
            wrong +=
                y.at(y.index(N - 1, H - 1, q, k)) !=
                y.rounded(b.at(k) + window_sum(in.w, N - 1, H - 1, q, k, padded(in.low, in.skip)));
        CHECK(wrong == 0);
      }
}

TEST_CASE("upcat_conv2d_bwd_data past 2^31 elements", "[cuda][huge]") {
  const Path& path = kPaths[2];
  for (bool many : {true, false}) {
    const int64_t A = many ? 4 * kManyChannels : kFewChannels,
                  B = many ? kManyChannels : kFewChannels, K = many ? kFewChannels : kManyChannels;
    INFO(A << " and " << B << " from " << K << " channels");
    ConvStream stream(path);
    const UpcatInputs in(stream, path, A, B, K);
    Huge dy(stream, {N, H, W, K}, path.dtype);
    HugeGrad dlow(stream, in.low.tensor.shape(), path.dtype, GradMode::Accumulate),
        dskip(stream, in.skip.tensor.shape(), path.dtype, GradMode::Accumulate);
    // Two rows and columns of low, with what reaches them.
    dy.fill_from(dy.index(N - 1, H - 3, W - kPixels - 1, 0));
    fill_last_windows(dskip);
    dlow.fill_from(dlow.index(N - 1, H / 2 - 1, W / 2 - kPixels / 2, 0));
    upcat_conv2d_bwd_data(stream, dy.tensor, in.w.tensor, in.phases, dlow.grad(), dskip.grad());
    stream.synchronize();
    int wrong = 0;
    for (int64_t q = W - kPixels; q < W; ++q)
      for (int64_t c = 0; c < B; ++c) {
        const int64_t i = dskip.index(N - 1, H - 1, q, c);
        wrong += dskip.at(i) != dskip.rounded(dskip.before(i) + reached_sum(in.w, N - 1, H - 1, q,
                                                                            A + c, padded(dy)));
      }
    for (int64_t x = (W - kPixels) / 2; x < W / 2; ++x)
      for (int64_t a = 0; a < A; ++a) {
        const int64_t i = dlow.index(N - 1, H / 2 - 1, x, a);
        double sum = dlow.before(i);
        for (int p = 0; p < 4; ++p)
          sum += reached_sum(in.w, N - 1, H - 2 + p / 2, 2 * x + p % 2, a, padded(dy));
        wrong += dlow.at(i) != dlow.rounded(sum);
      }
    CHECK(wrong == 0);
  }
}

TEST_CASE("upcat_conv2d_bwd_weight past 2^31 elements", "[cuda][huge]") {
  // So many channels of skip are enough blocks: one part.
  constexpr int64_t kFew = 16, kOnePart = 8192;
  static_assert(kFew * 9 * 4 * kMany > k2e31);
  for (const Path& path : kPaths)
    for (int64_t odd : {0, 5})
      for (bool many : {true, false}) {  // of channels of low, or else of skip
        const bool phases = path.dtype == DType::bf16 && odd == 0;
        const int64_t A = odd + (many ? 4 * kMany : kFew),
                      B = odd + (!many    ? kMany
                                 : phases ? kOnePart
                                          : kFew),
                      K = odd + kFew;
        INFO(path.name << ", " << A << " and " << B << " to " << K << " channels");
        ConvStream stream(path);
        Huge low(stream, {1, kRows / 2, kColumns / 2, A}, path.dtype),
            skip(stream, {1, kRows, kColumns, B}, path.dtype),
            dy(stream, {1, kRows, kColumns, K}, path.dtype);
        HugeGrad dw(stream, {K, 3, 3, A + B}, DType::f32, GradMode::Accumulate),
            db(stream, {K}, DType::f32, GradMode::Accumulate);
        for (Huge* input : {&low, &skip, &dy}) fill_last_channels(*input, 24);
        fill_filter_grads(dw, db);
        const int64_t first = dw.index(K - 1, 2, 2, A - 8);
        if (phases) dw.fill(first, first + 8);
        upcat_conv2d_bwd_weight(stream, low.tensor, skip.tensor, dy.tensor, dw.grad(), db.grad());
        stream.synchronize();
        // The last channels of low, and those of skip if they are few.
        check_filter_grads(dw, db, dy, 24, padded(low, skip));
        if (!phases || !many) continue;
        // The last blocks have the last phase, which odd rows and columns of dy are, and the last
        // tap.
        int wrong = 0;
        for (int64_t i = first; i < first + 8; ++i)
          wrong += dw.at(i) != dw.before(i) + last_tap_sum(dy, K - 1, A - 8 + (i - first),
                                                           padded(low, skip), true);
        CHECK(wrong == 0);
      }
}

TEST_CASE("upcat_phases past 2^31 elements", "[cuda][huge]") {
  constexpr int64_t K = 16, A = int64_t{1} << 24, C = A + 8;
  static_assert(K * 9 * A > k2e31);
  ConvStream stream(kPaths[2]);
  Huge w(stream, {K, 3, 3, C}, DType::f32), phases(stream, {K, 4, 4, A}, DType::bf16);
  for (int64_t tap = 0; tap < 9; ++tap)
    w.fill(w.index(K - 1, tap / 3, tap % 3, A - 8), w.index(K - 1, tap / 3, tap % 3, A));
  upcat_phases(stream, w.tensor, phases.tensor);
  stream.synchronize();
  int wrong = 0;
  for (int64_t a = A - 8; a < A; ++a) {
    const auto tap = [&](int64_t r, int64_t s) { return w.at(w.index(K - 1, r, s, a)); };
    wrong += phases.at(phases.index(K - 1, 0, 0, a)) != tap(0, 0);
    wrong +=
        phases.at(phases.index(K - 1, 3, 0, a)) != tap(0, 0) + tap(0, 1) + tap(1, 0) + tap(1, 1);
    wrong += phases.at(phases.index(K - 1, 3, 3, a)) != tap(2, 2);
  }
  CHECK(wrong == 0);
}
