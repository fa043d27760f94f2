// Noise, timesteps and batches: keyed by sample and epoch, so the same in every batch, and the same
// bits on every device.
#include <algorithm>
#include <bit>
#include <catch2/catch.hpp>
#include <cmath>
#include <numeric>

#include "core/rng.h"
#include "kernels/kernels.h"
#include "tests/cuda_devices.h"
#include "tests/temp_dir.h"

using namespace tessera;

namespace {

uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }

// Noise of the samples [first, first + count) of a set of 5, added to zeros.
std::vector<float> noise_of(Stream& stream, NoiseUse use, int64_t first, int64_t count, int t = 800,
                            uint32_t epoch = 2, float level = 0.5f) {
  std::vector<int64_t> ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), first);
  const std::vector<int32_t> steps(ids.size(), t);
  const Tensor samples = Tensor::from<int64_t>(stream, {count}, ids);
  const Tensor timesteps = Tensor::from<int32_t>(stream, {count}, steps);
  const Tensor clean = Tensor::zeros(stream, {count, 3, 5, 1});
  Tensor noisy = Tensor::empty(stream, clean.shape());
  add_noise(stream, {7, epoch, level}, use, samples, timesteps, clean, noisy);
  return noisy.to_vector<float>(stream);
}

std::vector<int32_t> timesteps_of(Stream& stream, const NoiseSpec& spec,
                                  const std::vector<int64_t>& ids) {
  const Tensor samples = Tensor::from<int64_t>(stream, {int64_t(ids.size())}, ids);
  Tensor t = Tensor::empty(stream, samples.shape(), DType::i32);
  draw_timesteps(stream, spec, samples, t);
  return t.to_vector<int32_t>(stream);
}

}  // namespace

TEST_CASE("add_noise gives a sample the same bits in every batch", "[rng][noise]") {
  Stream stream(Device::open(DeviceType::cpu));
  for (NoiseUse use : {NoiseUse::Training, NoiseUse::Evaluation}) {
    const std::vector<float> whole = noise_of(stream, use, 0, 5);
    for (int64_t split = 0; split <= 5; ++split) {
      std::vector<float> parts = noise_of(stream, use, 0, split);
      const std::vector<float> rest = noise_of(stream, use, split, 5 - split);
      parts.insert(parts.end(), rest.begin(), rest.end());
      CHECK(parts == whole);
    }
  }
}

TEST_CASE("add_noise scales by t, and numbers the elements in storage order", "[rng][noise]") {
  Stream stream(poisoned_cpu());
  for (const float level : {0.5f, 1.0f})
    for (const auto& [t, share] :
         {std::pair(0u, 0.0f), {500u, 0.5f}, {800u, 0.8f}, {1000u, 1.0f}}) {
      const std::vector<float> training =
          noise_of(stream, NoiseUse::Training, 4, 1, int(t), 2, level);
      const std::vector<float> evaluation =
          noise_of(stream, NoiseUse::Evaluation, 4, 1, int(t), 2, level);
      for (uint32_t i = 0; i < 15; ++i) {
        const float sigma = share * level;
        CHECK(training[i] == sigma * normal4({7, 2, 4, Purpose::noise}, i / 4)[i % 4]);
        CHECK(evaluation[i] == sigma * normal4({7, t, 4, Purpose::eval_noise}, i / 4)[i % 4]);
      }
    }
}

TEST_CASE("training noise changes with the epoch, evaluation noise does not", "[rng][noise]") {
  Stream stream(Device::open(DeviceType::cpu));
  for (NoiseUse use : {NoiseUse::Training, NoiseUse::Evaluation})
    CHECK((noise_of(stream, use, 0, 2, 500, 0) == noise_of(stream, use, 0, 2, 500, 1)) ==
          (use == NoiseUse::Evaluation));
}

TEST_CASE("add_noise works in place and refuses what has no meaning", "[rng][noise]") {
  Stream stream(Device::open(DeviceType::cpu));
  const Tensor samples = Tensor::from<int64_t>(stream, {1}, std::vector<int64_t>{-1});
  const Tensor t = Tensor::from<int32_t>(stream, {1}, std::vector<int32_t>{800});
  Tensor image = Tensor::zeros(stream, {1, 3, 5, 1});
  const auto run = [&](const Tensor& ids, Tensor& x) {
    add_noise(stream, {7, 2, 0.5f}, NoiseUse::Training, ids, t, x, x);
  };
  CHECK(message_of<Error>([&] {
          run(samples, image);
        }).find("sample -1, expected 0 to 4294967295") != std::string::npos);
  const Tensor two = Tensor::zeros(stream, {2}, DType::i64);
  CHECK(message_of<Error>([&] { run(two, image); }).find("samples is [2] i64, expected [1] i64") !=
        std::string::npos);
  const Tensor zero = Tensor::zeros(stream, {1}, DType::i64);
  CHECK(message_of<Error>([&] {
          add_noise(stream, {}, NoiseUse::Training, zero, zero, image, image);
        }).find("t is [1] i64, expected [1] i32") != std::string::npos);
  Tensor wide = Tensor::zeros(stream, {1, 3, 5, 1}, DType::f64);
  CHECK(message_of<Error>([&] { run(samples, wide); }).find("f32 only") != std::string::npos);

  run(Tensor::from<int64_t>(stream, {1}, std::vector<int64_t>{4}), image);
  CHECK(image.to_vector<float>(stream) == noise_of(stream, NoiseUse::Training, 4, 1));
}

TEST_CASE("draw_timesteps is uniform over 0..999 and keyed by sample and epoch", "[rng][noise]") {
  Stream stream(Device::open(DeviceType::cpu));
  std::vector<int64_t> ids(200000);
  std::iota(ids.begin(), ids.end(), 0);
  const std::vector<int32_t> t = timesteps_of(stream, {3, 0}, ids);
  std::vector<int> counts(1000);
  for (int32_t step : t) {
    REQUIRE(step >= 0);
    REQUIRE(step < 1000);
    ++counts[size_t(step)];
  }
  CHECK(*std::min_element(counts.begin(), counts.end()) > 0);
  double chi_squared = 0;
  for (int count : counts) chi_squared += (count - 200.0) * (count - 200.0) / 200.0;
  CHECK(std::abs(chi_squared - 999) < 4 * std::sqrt(2 * 999.0));

  CHECK(timesteps_of(stream, {3, 0}, {199999, 17})[1] == t[17]);
  CHECK(timesteps_of(stream, {3, 1}, ids) != t);
  CHECK(timesteps_of(stream, {4, 0}, ids) != t);
}

TEST_CASE("normalize_images maps every byte as PyTorch does", "[noise]") {
  Stream stream(poisoned_cpu());
  std::vector<uint8_t> bytes(256);
  std::iota(bytes.begin(), bytes.end(), uint8_t{0});
  const Tensor images = Tensor::from<uint8_t>(stream, {1, 16, 16, 1}, bytes);
  Tensor clean = Tensor::empty(stream, images.shape());
  normalize_images(stream, images, clean);
  const std::vector<float> values = clean.to_vector<float>(stream);
  CHECK(values[0] == -1.0f);
  CHECK(values[255] == 1.0f);
  for (int i = 0; i < 256; ++i) {
    const float unit = float(i) / 255.0f;
    CHECK(values[size_t(i)] == (unit - 0.5f) / 0.5f);
  }
}

namespace {

constexpr NoiseSpec kSpec{7, 3, 0.5f};

// Odd and even sizes, whole vectors and not, one element, images without elements, no images.
const std::vector<Shape> kImageSets{{5, 3, 5, 1},   {4, 4, 8, 2},   {9, 7, 9, 3}, {3, 1, 1, 1},
                                    {2, 33, 31, 1}, {1, 64, 64, 3}, {2, 0, 4, 1}, {0, 4, 4, 1}};

Tensor images_of(Stream& stream, const Shape& shape) {
  std::vector<uint8_t> bytes(static_cast<size_t>(shape.numel()));
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = uint8_t(i * 37 + i / 256);
  return Tensor::from<uint8_t>(stream, shape, bytes);
}

struct NoiseBatch {
  std::vector<int32_t> t;
  std::vector<float> clean, noisy;
  // Bits, not values: NaN would differ from itself.
  bool operator==(const NoiseBatch& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return std::ranges::equal(a, b, [](float x, float y) { return bits_of(x) == bits_of(y); });
    };
    return t == other.t && same(clean, other.clean) && same(noisy, other.noisy);
  }
};

std::vector<float> floats_of(Stream& stream, const Tensor& tensor) {
  const Values values = values_of(stream, tensor);
  return {values.data.begin(), values.data.end()};
}

// Timesteps, normalised images and noise of all images of a set, one function after the other.
NoiseBatch composed(Stream& stream, const Shape& set, NoiseUse use,
                    const std::vector<int64_t>& samples) {
  const Tensor images = images_of(stream, set);
  const Tensor ids = Tensor::from<int64_t>(stream, {set[0]}, samples);
  Tensor t = Tensor::empty(stream, {set[0]}, DType::i32);
  Tensor clean = Tensor::empty(stream, set), noisy = Tensor::empty(stream, set);
  draw_timesteps(stream, kSpec, ids, t);
  normalize_images(stream, images, clean);
  add_noise(stream, kSpec, use, ids, t, clean, noisy);
  Tensor in_place = Tensor::empty(stream, set);
  normalize_images(stream, images, in_place);
  add_noise(stream, kSpec, use, ids, t, in_place, in_place);
  CHECK(floats_of(stream, in_place) == floats_of(stream, noisy));
  return {t.to_vector<int32_t>(stream), floats_of(stream, clean), floats_of(stream, noisy)};
}

// The rows of a set by make_batch.
NoiseBatch gathered(Stream& stream, const Shape& set, const std::vector<int64_t>& rows,
                    const std::vector<int64_t>& samples, DType dtype = DType::f32) {
  const int64_t n = int64_t(rows.size());
  Tensor t = Tensor::empty(stream, {n}, DType::i32);
  Tensor clean = Tensor::empty(stream, {n, set[1], set[2], set[3]});
  Tensor noisy = Tensor::empty(stream, clean.shape(), dtype);
  make_batch(stream, kSpec, images_of(stream, set), Tensor::from<int64_t>(stream, {n}, rows),
             Tensor::from<int64_t>(stream, {n}, samples), {}, t, clean, noisy);
  return {t.to_vector<int32_t>(stream), floats_of(stream, clean), floats_of(stream, noisy)};
}

std::vector<int64_t> samples_of(int64_t count) {
  std::vector<int64_t> samples(static_cast<size_t>(count));
  for (size_t i = 0; i < samples.size(); ++i) samples[i] = int64_t(i * 4294967291u % UINT32_MAX);
  return samples;
}

}  // namespace

TEST_CASE("every device draws the CPU's bits", "[rng][noise][cuda]") {
  Stream cpu(poisoned_cpu());
  on_cuda_devices([&](Stream& stream) {
    for (const Shape& set : kImageSets)
      for (NoiseUse use : {NoiseUse::Training, NoiseUse::Evaluation}) {
        INFO(name_of(stream.device().type()) << ' ' << set);
        const std::vector<int64_t> samples = samples_of(set[0]);
        CHECK(composed(stream, set, use, samples) == composed(cpu, set, use, samples));
      }
  });
}

TEST_CASE("add_noise on CUDA devices works in place", "[rng][noise][cuda]") {
  Stream cpu(poisoned_cpu());
  on_cuda_devices([&](Stream& stream) {
    Tensor image = Tensor::zeros(stream, {1, 3, 5, 1});
    add_noise(stream, {7, 2, 0.5f}, NoiseUse::Training,
              Tensor::from<int64_t>(stream, {1}, std::vector<int64_t>{4}),
              Tensor::from<int32_t>(stream, {1}, std::vector<int32_t>{800}), image, image);
    CHECK(image.to_vector<float>(stream) == noise_of(cpu, NoiseUse::Training, 4, 1));
  });
}

namespace {

// make_batch of all images, backwards, in batches split anywhere, equals the functions composed.
void check_make_batch(Stream& stream, Stream& cpu, const Shape& set) {
  const std::vector<int64_t> samples = samples_of(set[0]);
  const NoiseBatch expected = composed(cpu, set, NoiseUse::Training, samples);
  const size_t size = size_t(set[0] ? set.numel() / set[0] : 0);
  std::vector<int64_t> rows(samples.size());
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = set[0] - 1 - int64_t(i);
  for (size_t split = 0; split <= rows.size(); split += 2)
    for (DType dtype : {DType::f32, DType::bf16}) {
      INFO(name_of(stream.device().type())
           << ' ' << set << " from " << split << ' ' << name_of(dtype));
      const std::vector<int64_t> some(rows.begin() + int64_t(split), rows.end());
      std::vector<int64_t> keys;
      NoiseBatch wanted;
      for (int64_t row : some) {
        keys.push_back(samples[size_t(row)]);
        wanted.t.push_back(expected.t[size_t(row)]);
        for (size_t i = size_t(row) * size; i < size_t(row + 1) * size; ++i) {
          wanted.clean.push_back(expected.clean[i]);
          const float noisy = expected.noisy[i];
          wanted.noisy.push_back(dtype == DType::bf16 ? to_float(to_bf16(noisy)) : noisy);
        }
      }
      CHECK(gathered(stream, set, some, keys, dtype) == wanted);
    }
}

}  // namespace

TEST_CASE("make_batch equals gathering, normalising and noising", "[rng][noise][cuda]") {
  Stream cpu(poisoned_cpu());
  on_all_devices([&](Stream& stream) {
    for (const Shape& set : kImageSets) check_make_batch(stream, cpu, set);
  });
}

TEST_CASE("a row that is not in the set is an error, or an image of NaNs", "[noise][cuda]") {
  const Shape set{3, 4, 5, 1};
  Stream cpu(poisoned_cpu());
  for (int64_t row : {int64_t{-1}, int64_t{3}, int64_t{1} << 40}) {
    INFO("row " << row);
    CHECK(message_of<Error>([&] {
            gathered(cpu, set, {0, row}, {5, 6});
          }).find(concat("make_batch: row ", row, ", expected 0 to 2")) != std::string::npos);
    on_cuda_devices([&](Stream& stream) {
      const NoiseBatch batch = gathered(stream, set, {0, row, 2}, {5, 6, 7});
      const NoiseBatch good = gathered(cpu, set, {0, 1, 2}, {5, 6, 7});
      CHECK(batch.t == good.t);
      for (size_t i = 0; i < batch.clean.size(); ++i) {
        const bool bad = i / 20 == 1;
        CHECK(std::isnan(batch.clean[i]) == bad);
        CHECK(std::isnan(batch.noisy[i]) == bad);
        if (!bad) CHECK(bits_of(batch.noisy[i]) == bits_of(good.noisy[i]));
      }
    });
  }
  CHECK(message_of<Error>([&] { gathered(cpu, set, {0}, {-1}); }).find("sample -1") !=
        std::string::npos);
}
