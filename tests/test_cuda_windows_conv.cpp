// Index arithmetic of the CUDA convolutions past 2^31 elements: the last blocks of launches over
// address space (tests/huge.h), against the definition. Numbers are small integers: all is exact.
//
// fwd and bwd_data read few pixels a block, so there the pixels are many. A block of bwd_weight
// reads all pixels of its part, so there the channels are many, and the parts just one: with more
// than one, a block would have to read some 10^5 pixels to come past 2^31 elements. Where a part
// begins is a count of pixels all the same, and these are below 2^30.
#include "tests/huge_conv.h"

using namespace tessera;

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
        conv2d_bwd_data(stream, kSame, dy.tensor, w.tensor, dx.grad(),
                        {{}, turned(stream, w, C, C)});
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

TEST_CASE("norm_act_conv2d_bwd past 2^31 elements", "[cuda][huge]") {
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
  norm_act_conv2d_bwd(stream, {{kGroups}}, kSame, x.tensor, moments.tensor, gamma.tensor,
                      beta.tensor, t.tensor, w.tensor, dy.tensor, dx.grad(), {}, {}, {},
                      {{}, turned(stream, w, C, C)});
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

TEST_CASE("conv2d_bwd_data in patches past 2^31 elements", "[cuda][huge]") {
  for (const Path& path : kPaths)
    for (int64_t odd : {0, 1}) {
      const int64_t C = kManyChannels, K = odd + kFewChannels;
      INFO(path.name << ", " << K << " to " << C << " channels");
      ConvStream stream(path);
      Huge dy(stream, {N, H / 2, W / 2, K}, path.dtype), w(stream, {K, 2, 2, C}, path.dtype);
      HugeGrad dx(stream, {N, H, W, C}, path.dtype, GradMode::Accumulate);
      dy.fill_from(dy.index(N - 1, H / 2 - 1, W / 2 - kPixels, 0));
      w.fill();
      dx.fill_from(dx.index(N - 1, H - 1, W - kPixels, 0));
      conv2d_bwd_data(stream, {2, 0, 0}, dy.tensor, w.tensor, dx.grad());
      stream.synchronize();
      // The second lines of the last patches, which the last two blocks have with every tile.
      int wrong = 0;
      for (int64_t q = W - kPixels; q < W; ++q)
        for (int64_t c = 0; c < C; ++c) {
          const int64_t i = dx.index(N - 1, H - 1, q, c);
          double sum = dx.before(i);
          for (int64_t k = 0; k < K; ++k)
            sum += dy.at(dy.index(N - 1, H / 2 - 1, q / 2, k)) * w.at(w.index(k, 1, q % 2, c));
          wrong += dx.at(i) != dx.rounded(sum);
        }
      CHECK(wrong == 0);
    }
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
      conv2d_bwd_data(stream, kSame, x.tensor, w_back.tensor, dx.grad(),
                      {{}, turned(stream, w_back, many[3], 16)});
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
        ConvStream stream(path, 24);  // all parts of a bias's pixels
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
