// Index arithmetic past 2^31 elements of the convolutions between one channel and many
// (kernels/cuda/conv_thin.h): the last blocks of launches over address space (tests/huge.h),
// against the definition.
#include "tests/huge_conv.h"

using namespace tessera;

namespace {

constexpr uint64_t kLastBlocks = 8;  // all slices of the last tile

}  // namespace

TEST_CASE("thin convolutions of many pixels past 2^31 elements", "[cuda][huge]") {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t K : {kManyChannels, kManyChannels + 1}) {
      INFO(name_of(dtype) << ", " << K << " channels");
      HugeStream stream(kLastBlocks, HugeStream::kReserveSums);
      const Shape thin{N, H, W, 1}, wide{N, H, W, K};
      Huge one(stream, thin, dtype), many(stream, wide, dtype), w(stream, {K, 3, 3, 1}, dtype),
          across(stream, {1, 1, 1, K}, dtype), b(stream, {K}, DType::f32),
          b_one(stream, {1}, DType::f32), y(stream, wide, dtype), y_one(stream, thin, dtype);
      HugeGrad dx(stream, wide, dtype, GradMode::Accumulate);
      for (Huge* input : {&one, &many, static_cast<Huge*>(&dx)}) fill_last_windows(*input);
      for (Huge* input : {&w, &across, &b, &b_one}) input->fill();
      conv2d_fwd(stream, kSame, one.tensor, w.tensor, b.tensor, y.tensor);
      conv2d_fwd(stream, {}, many.tensor, across.tensor, b_one.tensor, y_one.tensor);
      conv2d_bwd_data(stream, {}, one.tensor, across.tensor, dx.grad());
      stream.synchronize();
      int wrong = 0;
      for (int64_t q = W - kPixels; q < W; ++q) {
        double sum = b_one.at(0);
        for (int64_t k = 0; k < K; ++k) {
          const int64_t i = y.index(N - 1, H - 1, q, k);
          sum += many.at(i) * across.at(k);
          wrong += y.at(i) != y.rounded(b.at(k) + window_sum(w, N - 1, H - 1, q, k, padded(one)));
          const double up = one.at(one.index(N - 1, H - 1, q, 0));
          wrong += dx.at(i) != dx.rounded(dx.before(i) + up * across.at(k));
        }
        wrong += y_one.at(y_one.index(N - 1, H - 1, q, 0)) != y_one.rounded(sum);
      }
      CHECK(wrong == 0);
    }
}

TEST_CASE("thin convolutions of many channels past 2^31 elements", "[cuda][huge]") {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t K : {kMany, kMany + kOdd}) {
      INFO(name_of(dtype) << ", " << K << " channels");
      HugeStream stream(kLastBlocks, HugeStream::kReserveSums);
      Huge one(stream, {1, kRows, kColumns, 1}, dtype),
          many(stream, {1, kRows, kColumns, K}, dtype);
      HugeGrad dw(stream, {K, 3, 3, 1}, DType::f32, GradMode::Accumulate),
          db(stream, {K}, DType::f32, GradMode::Accumulate),
          across(stream, {1, 1, 1, K}, DType::f32, GradMode::Accumulate);
      one.fill();
      fill_last_channels(many, 24);
      fill_filter_grads(dw, db);
      fill_last_channels(across, 24);
      conv2d_bwd_weight(stream, kSame, one.tensor, many.tensor, dw.grad(), db.grad());
      conv2d_bwd_weight(stream, {}, many.tensor, one.tensor, across.grad(), {});
      stream.synchronize();
      check_filter_grads(dw, db, many, 1, padded(one));
      int wrong = 0;
      for (int64_t c = K - 16; c < K; ++c) {
        double sum = across.before(c);
        for (int64_t pixel = 0; pixel < kRows * kColumns; ++pixel)
          sum += one.at(pixel) * many.at(pixel * K + c);
        wrong += across.at(c) != sum;
      }
      CHECK(wrong == 0);
    }
}
