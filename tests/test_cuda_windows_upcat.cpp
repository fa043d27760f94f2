// Index arithmetic of the CUDA kernels of upcat_conv2d past 2^31 elements: see
// test_cuda_windows_conv.cpp. In bf16 with packs it takes the sub-pixel form, whose phases are
// given here: sums of few small integers, exact in bf16.
#include "tests/huge_conv.h"

using namespace tessera;

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
        upcat_conv2d_fwd(stream, in.low.tensor, in.skip.tensor, in.w.tensor, {in.phases}, b.tensor,
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
    Tensor turned_phases = Tensor::empty(stream, {A, 4, 4, K}, DType::bf16);
    for (int64_t i = 0; i < in.phases.numel(); ++i)
      turned_phases.data<bf16>()[(i % A * 16 + 15 - i / A % 16) * K + i / A / 16] =
          in.phases.data<bf16>()[i];
    upcat_conv2d_bwd_data(stream, dy.tensor, in.w.tensor,
                          {in.phases, turned(stream, in.w, B, B), turned_phases}, dlow.grad(),
                          dskip.grad());
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
  upcat_phases(stream, std::vector<PhasedFilter>{{w.tensor, phases.tensor}});
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
