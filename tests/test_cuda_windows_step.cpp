// Index arithmetic past 2^31 elements of the CUDA kernels of a training step, the network apart:
// batch, loss, optimizer, the search for numbers that are not finite. The last blocks of launches
// over address space (tests/huge.h), against the definition.
//
// Not here: the bias of linear_fwd. Its kernel comes after a matrix product that the host model
// takes on the host, all of it, which for 2^31 elements is minutes and gigabytes. draw_timesteps
// has an element for each image of a batch.
#include <catch2/catch.hpp>

#include "core/rng.h"
#include "kernels/adam.h"
#include "kernels/cuda/last_block.h"
#include "tests/huge.h"

using namespace tessera;

namespace {

// Of elementwise kernels: in packs, and not.
constexpr int64_t kSizes[] = {k2e31 + 1024, k2e31 + 1021};
// Where each block reads every (grid size)-th pack, the last 2^21 elements are one round of the
// grid, and the last blocks see the last elements.
constexpr int64_t kRounds[] = {k2e31 + (1 << 21), k2e31 + (1 << 21) - 3};
constexpr int64_t kLast = 600;  // elements that hold numbers
constexpr int64_t kBlocks = 4;  // that run

// Of a launch of so many blocks that add up what all of them left, those that do not run have come.
void let_others_arrive(Stream& stream, int64_t blocks) {
  unsigned* const counter = simt::Arrivals::of(stream, 1);
  stream.synchronize();
  *counter = unsigned(blocks - kBlocks);
}

float normalised(double value) { return (float(value) / 255.0f - 0.5f) / 0.5f; }

// Batches of many images, and of two that are larger than 2^31 elements; in packs of 4, and not.
const Shape kBatches[] = {
    {524417, 64, 64, 1}, {524943, 63, 65, 1}, {2, 46341, 46344, 1}, {2, 46341, 46343, 1}};

}  // namespace

TEST_CASE("mse past 2^31 elements", "[cuda][huge]") {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t n : kSizes) {
      INFO(name_of(dtype) << ' ' << n);
      HugeStream stream(kBlocks, HugeStream::kReserveSums);
      let_others_arrive(stream, (n / (n % 4 ? 1 : 4) + 1023) / 1024);  // 1024 packs each
      Huge p(stream, {n}, dtype), target(stream, {n}, DType::f32), loss(stream, {1}, DType::f32),
          dloss(stream, {1}, DType::f32);
      HugeGrad dp(stream, {n}, dtype, GradMode::Accumulate);
      for (Huge* input : {&p, &target, static_cast<Huge*>(&dp)}) input->fill_from(n - kLast);
      dloss.set(0, double(n));
      mse_fwd(stream, p.tensor, target.tensor, loss.tensor);
      mse_bwd(stream, p.tensor, target.tensor, dloss.tensor, dp.grad());
      stream.synchronize();
      double sum = 0;
      for (int64_t i = n - kLast; i < n; ++i) sum += std::pow(p.number(i) - target.number(i), 2);
      CHECK(loss.difference(0, 1, 1e-6, [&](int64_t) { return sum / double(n); }) == "");
      // 2 / n * dloss rounds to 2, and all else is integer.
      CHECK(dp.difference(n - kLast, n, 0, [&](int64_t i) {
        return dp.before(i) + 2 * (p.number(i) - target.number(i));
      }) == "");
    }
}

TEST_CASE("the bias gradient of linear past 2^31 elements", "[cuda][huge]") {
  const int64_t N = 520, C = 8;
  for (DType dtype : {DType::f32, DType::bf16}) {
    const int64_t K = (int64_t{1} << 22) + 5;
    INFO(name_of(dtype));
    HugeStream stream;
    Huge x(stream, {N, C}, dtype), dy(stream, {N, K}, dtype);
    HugeGrad db(stream, {K}, DType::f32, GradMode::Accumulate);
    REQUIRE(dy.tensor.numel() > k2e31);
    for (int64_t n = 0; n < N; ++n) dy.fill((n + 1) * K - 40, (n + 1) * K);
    db.fill_from(K - 40);
    linear_bwd_weight(stream, x.tensor, dy.tensor, {}, db.grad());
    stream.synchronize();
    CHECK(db.difference(K - 40, K, 0, [&](int64_t k) {
      double sum = db.before(k);
      for (int64_t n = 0; n < N; ++n) sum += dy.number(n * K + k);
      return sum;
    }) == "");
  }
}

TEST_CASE("adam_step and copy_rounded past 2^31 elements", "[cuda][huge]") {
  for (int64_t n : kSizes) {
    INFO(n);
    HugeStream stream;
    Huge grads(stream, {n}, DType::f32), params(stream, {n}, DType::f32),
        m(stream, {n}, DType::f32), v(stream, {n}, DType::f32), copies(stream, {n}, DType::bf16),
        again(stream, {n}, DType::bf16);
    for (Huge* input : {&grads, &params, &m}) input->fill_from(n - kLast);
    for (int64_t i = n - kLast; i < n; ++i) v.set(i, std::abs(v.number(i)));
    AdamSpec spec;
    spec.lr = 0.01;
    spec.weight_decay = 0.1;
    adam_step(stream, spec, 3,
              {grads.tensor, {}, params.tensor, m.tensor, v.tensor, copies.tensor, {}, {}});
    copy_rounded(stream, params.tensor, again.tensor);
    stream.synchronize();
    const AdamFactors<double> f(spec, 3);
    const auto new_m = [&](int64_t i) {
      return f.beta1 * m.number(i) + f.one_minus_beta1 * grads.number(i);
    };
    const auto new_v = [&](int64_t i) {
      return f.beta2 * std::abs(v.number(i)) + f.one_minus_beta2 * std::pow(grads.number(i), 2);
    };
    const auto updated = [&](int64_t i) {
      return f.decay * params.number(i) -
             f.step_size * new_m(i) / (std::sqrt(new_v(i)) / f.root_correction2 + f.eps);
    };
    CHECK(m.difference(n - kLast, n, 1e-5, new_m) == "");
    CHECK(v.difference(n - kLast, n, 1e-5, new_v) == "");
    CHECK(params.difference(n - kLast, n, 1e-5, updated) == "");
    for (const Huge* rounded : {&copies, &again})
      CHECK(rounded->difference(n - kLast, n, 0,
                                [&](int64_t i) { return rounded->rounded(params.at(i)); }) == "");
  }
}

TEST_CASE("grad_norm past 2^31 elements", "[cuda][huge]") {
  for (int64_t n : kRounds) {
    INFO(n);
    HugeStream stream(kBlocks, HugeStream::kReserveSums);
    let_others_arrive(stream, 1024);
    Huge grads(stream, {n}, DType::f32), norm(stream, {1}, DType::f32);
    grads.fill_from(n - kLast);
    grad_norm(stream, grads.tensor, norm.tensor);
    stream.synchronize();
    double sum = 0;
    for (int64_t i = n - kLast; i < n; ++i) sum += std::pow(grads.number(i), 2);
    CHECK(norm.difference(0, 1, 1e-6, [&](int64_t) { return std::sqrt(sum); }) == "");
  }
}

TEST_CASE("find_non_finite past 2^31 elements", "[cuda][huge]") {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t n : kRounds) {
      INFO(name_of(dtype) << ' ' << n);
      // What the other blocks found was never written, and as an index is larger than any.
      HugeStream stream;
      Huge x(stream, {n}, dtype);
      x.fill_from(n - kLast);
      CHECK(find_non_finite(stream, x.tensor) == -1);
      x.set(n - 100, INFINITY);
      x.set(n - 7, NAN);
      CHECK(find_non_finite(stream, x.tensor) == n - 100);
      x.set(n - 100, 0);
      CHECK(find_non_finite(stream, x.tensor) == n - 7);
    }
}

TEST_CASE("normalize_images and add_noise past 2^31 elements", "[cuda][huge]") {
  const NoiseSpec spec{42, 3, 0.5f};
  for (const Shape& shape : kBatches) {
    INFO(shape);
    const int64_t N = shape[0], size = shape.numel() / N, total = shape.numel();
    HugeStream stream(8);
    Huge images(stream, shape, DType::u8), clean(stream, shape, DType::f32),
        noisy(stream, shape, DType::f32);
    Tensor samples = Tensor::empty(stream, {N}, DType::i64),
           t = Tensor::empty(stream, {N}, DType::i32);
    REQUIRE(total > k2e31);
    for (int64_t n = N - 2; n < N; ++n) {
      samples.data<int64_t>()[n] = 7 * n;
      t.data<int32_t>()[n] = int32_t(500 + n % 400);
    }
    images.fill_from(total - kLast);
    normalize_images(stream, images.tensor, clean.tensor);
    add_noise(stream, spec, NoiseUse::Training, samples, t, clean.tensor, noisy.tensor);
    stream.synchronize();
    CHECK(clean.difference(total - kLast, total, 0,
                           [&](int64_t i) { return normalised(images.number(i)); }) == "");
    CHECK(noisy.difference(total - kLast, total, 0, [&](int64_t i) {
      const int64_t n = i / size, at = i % size;
      const RngKey key{spec.seed, spec.epoch, uint32_t(7 * n), Purpose::noise};
      return std::fma(sigma_of(int(500 + n % 400), spec.noise_level),
                      normal4(key, uint32_t(at / 4))[size_t(at % 4)], normalised(images.number(i)));
    }) == "");
  }
}

TEST_CASE("make_batch past 2^31 elements", "[cuda][huge]") {
  const NoiseSpec spec{42, 3, 0.5f};
  for (DType dtype : {DType::f32, DType::bf16})
    for (const Shape& shape : kBatches) {
      INFO(name_of(dtype) << ' ' << shape);
      const int64_t N = shape[0], size = shape.numel() / N, total = shape.numel();
      HugeStream stream(8);
      Huge images(stream, shape, DType::u8), clean(stream, shape, DType::f32),
          noisy(stream, shape, dtype);
      Tensor rows = Tensor::empty(stream, {N}, DType::i64),
             samples = Tensor::empty(stream, {N}, DType::i64),
             t = Tensor::empty(stream, {N}, DType::i32);
      // The last two images of the batch are the set's last two, exchanged.
      for (int64_t n = N - 2; n < N; ++n) {
        rows.data<int64_t>()[n] = 2 * N - 3 - n;
        samples.data<int64_t>()[n] = 7 * n;
        images.fill((n + 1) * size - kLast, (n + 1) * size);
      }
      make_batch(stream, spec, images.tensor, rows, samples, {}, t, clean.tensor, noisy.tensor);
      stream.synchronize();
      const int64_t first = total - kLast, row = total - size - kLast;  // of the batch, of the set
      CHECK(clean.difference(first, total, 0, [&](int64_t i) {
        return normalised(images.number(row + i - first));
      }) == "");
      const RngKey key{spec.seed, spec.epoch, uint32_t(7 * (N - 1)), Purpose::timestep};
      const int step = int(uniform_below(random4(key, 0)[0], 1000));
      CHECK(noisy.difference(first, total, 0, [&](int64_t i) {
        const int64_t at = i % size;
        const auto z =
            normal4({spec.seed, spec.epoch, key.sample, Purpose::noise}, uint32_t(at / 4));
        return noisy.rounded(
            std::fma(sigma_of(step, spec.noise_level), z[size_t(at % 4)], float(clean.at(i))));
      }) == "");
      if (size < 8 * 256 * 4) CHECK(t.data<int32_t>()[N - 1] == step);  // its first block ran
    }
}

TEST_CASE("timestep_embedding past 2^31 elements", "[cuda][huge]") {
  for (DType dtype : {DType::f32, DType::bf16}) {
    INFO(name_of(dtype));
    const int64_t dim = 1022, half = dim / 2, N = k2e31 / dim + 3;
    HugeStream stream(8);
    Tensor t = Tensor::empty(stream, {N}, DType::i32);
    Huge y(stream, {N, dim}, dtype);
    REQUIRE(y.tensor.numel() > k2e31);
    for (int64_t n = 0; n < N; ++n) t.data<int32_t>()[n] = int32_t(n % 1000);
    timestep_embedding_fwd(stream, t, y.tensor);
    stream.synchronize();
    int wrong = 0;
    for (int64_t n = N - 2; n < N; ++n)
      for (int64_t k = 0; k < half; ++k) {
        const double angle = double(n % 1000) * std::pow(10000.0, -double(k) / double(half));
        const double tolerance = dtype == DType::f32 ? 1e-6 : 4e-3;
        wrong += !(std::abs(y.at(n * dim + k) - std::sin(angle)) <= tolerance);
        wrong += !(std::abs(y.at(n * dim + k + half) - std::cos(angle)) <= tolerance);
      }
    CHECK(wrong == 0);
  }
}
