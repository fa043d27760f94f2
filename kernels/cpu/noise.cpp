// What makes a training batch of images: timesteps, normalisation, noise (core/rng.h). Elements of
// a sample are numbered in storage order (NHWC); numbers 4i .. 4i+3 come from Philox block i. Only
// f32 is defined: the bits are part of the contract, the same on every device and in every batch
// split, so there is no f64 version to compare them with.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/loops.h"
#include "kernels/noise.h"

namespace tessera {
namespace cpu {
namespace {

// The numbers of what is sampled or gathered. Checked here: nothing may throw in a parallel loop.
void check_numbers(const char* what, const Tensor& numbers, int64_t last) {
  for (int64_t i = 0; i < numbers.numel(); ++i) {
    const int64_t number = numbers.data<int64_t>()[i];
    ENSURE(number >= 0 && number <= last, what, ' ', number, ", expected 0 to ", last);
  }
}

template <class T>
void make_batch(const NoiseSpec& spec, const Tensor& images, const int64_t* rows,
                const int64_t* samples, const int32_t* t, Tensor& clean, T* noisy) {
  const int64_t N = clean.dim(0), size = N ? clean.numel() / N : 0, blocks = (size + 3) / 4;
  const uint8_t* from = images.data<uint8_t>();
  float* to = clean.data<float>();
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t n = 0; n < N; ++n)
    for (int64_t block = 0; block < blocks; ++block) {
      const float sigma = sigma_of(t[n], spec.noise_level);
      const RngKey key = noise_key(spec, NoiseUse::Training, uint32_t(samples[n]), t[n]);
      const std::array<float, 4> z = normal4(key, uint32_t(block));
      for (int64_t i = 4 * block; i < std::min(size, 4 * block + 4); ++i) {
        const float value = normalized(from[rows[n] * size + i]);
        to[n * size + i] = value;
        noisy[n * size + i] = stored<T>(fmaf(sigma, z[i % 4], value));
      }
    }
}

}  // namespace

void draw_timesteps(Stream&, const NoiseSpec& spec, const Tensor& samples, Tensor& t) {
  check_numbers("draw_timesteps: sample", samples, UINT32_MAX);
  for (int64_t i = 0; i < samples.numel(); ++i)
    t.data<int32_t>()[i] = timestep_of(spec, uint32_t(samples.data<int64_t>()[i]));
}

void normalize_images(Stream&, const Tensor& images, Tensor& clean) {
  const uint8_t* from = images.data<uint8_t>();
  float* to = clean.data<float>();
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < images.numel(); ++i) to[i] = normalized(from[i]);
}

void add_noise(Stream&, const NoiseSpec& spec, NoiseUse use, const Tensor& samples, const Tensor& t,
               const Tensor& clean, Tensor& noisy) {
  check_numbers("add_noise: sample", samples, UINT32_MAX);
  const int64_t N = samples.numel(), size = N ? clean.numel() / N : 0, blocks = (size + 3) / 4;
  const int64_t* sample = samples.data<int64_t>();
  const int32_t* timestep = t.data<int32_t>();
  const float* from = clean.data<float>();
  float* to = noisy.data<float>();
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t n = 0; n < N; ++n)
    for (int64_t block = 0; block < blocks; ++block) {
      const RngKey key = noise_key(spec, use, uint32_t(sample[n]), timestep[n]);
      const float sigma = sigma_of(timestep[n], spec.noise_level);
      const std::array<float, 4> z = normal4(key, uint32_t(block));
      for (int64_t i = 4 * block; i < std::min(size, 4 * block + 4); ++i)
        to[n * size + i] = fmaf(sigma, z[i % 4], from[n * size + i]);
    }
}

void make_batch(Stream& stream, const NoiseSpec& spec, const Tensor& images, const Tensor& rows,
                const Tensor& samples, const Tensor& epoch, Tensor& t, Tensor& clean,
                Tensor& noisy) {
  check_numbers("make_batch: row", rows, images.dim(0) - 1);
  NoiseSpec now = spec;
  if (epoch) now.epoch = uint32_t(epoch.data<int64_t>()[0]);
  cpu::draw_timesteps(stream, now, samples, t);
  with_storage(noisy.dtype(), [&]<class T>() {
    make_batch(now, images, rows.data<int64_t>(), samples.data<int64_t>(), t.data<int32_t>(), clean,
               noisy.data<T>());
  });
}

}  // namespace cpu

namespace oracle {

// DISPATCH names them; never called, for nothing here is f64.
using cpu::add_noise;
using cpu::draw_timesteps;
using cpu::make_batch;
using cpu::normalize_images;

}  // namespace oracle

ON_CUDA(add_noise)
ON_CUDA(make_batch)
ON_CUDA(normalize_images)
ON_CUDA(draw_timesteps)

namespace {

void expect_f32_only(const char* what, DType dtype) {
  ENSURE(dtype == DType::f32, what, " is defined in f32 only, not ", name_of(dtype),
         ": its bits are the same on every device");
}

}  // namespace

void draw_timesteps(Stream& stream, const NoiseSpec& spec, const Tensor& samples, Tensor& t) {
  ENSURE(samples.rank() == 1, "draw_timesteps: samples is ", samples.shape(), ", expected [N]");
  expect("draw_timesteps: samples", samples, samples.shape(), DType::i64);
  expect("draw_timesteps: t", t, samples.shape(), DType::i32);
  DISPATCH(stream, DType::f32, draw_timesteps(stream, spec, samples, t));
}

void normalize_images(Stream& stream, const Tensor& images, Tensor& clean) {
  expect("normalize_images: images", images, images.shape(), DType::u8);
  expect_f32_only("normalize_images", clean.dtype());
  expect("normalize_images: clean", clean, images.shape(), DType::f32);
  DISPATCH(stream, DType::f32, normalize_images(stream, images, clean));
}

void add_noise(Stream& stream, const NoiseSpec& spec, NoiseUse use, const Tensor& samples,
               const Tensor& t, const Tensor& clean, Tensor& noisy) {
  expect_f32_only("add_noise", clean.dtype());
  ENSURE(clean.rank() == 4, "add_noise: clean is ", clean.shape(), ", expected [N,H,W,C]");
  expect("add_noise: samples", samples, {clean.dim(0)}, DType::i64);
  expect("add_noise: t", t, {clean.dim(0)}, DType::i32);
  expect("add_noise: noisy", noisy, clean.shape(), DType::f32);
  DISPATCH(stream, DType::f32, add_noise(stream, spec, use, samples, t, clean, noisy));
}

void make_batch(Stream& stream, const NoiseSpec& spec, const Tensor& images, const Tensor& rows,
                const Tensor& samples, const Tensor& epoch, Tensor& t, Tensor& clean,
                Tensor& noisy) {
  ENSURE(images.rank() == 4, "make_batch: images is ", images.shape(), ", expected [M,H,W,C]");
  ENSURE(rows.rank() == 1, "make_batch: rows is ", rows.shape(), ", expected [N]");
  const Shape shape{rows.dim(0), images.dim(1), images.dim(2), images.dim(3)};
  expect("make_batch: images", images, images.shape(), DType::u8);
  expect("make_batch: rows", rows, rows.shape(), DType::i64);
  expect("make_batch: samples", samples, rows.shape(), DType::i64);
  expect_if("make_batch: epoch", epoch, {1}, DType::i64);
  expect("make_batch: t", t, rows.shape(), DType::i32);
  expect("make_batch: clean", clean, shape, DType::f32);
  expect("make_batch: noisy", noisy, shape,
         noisy.dtype() == DType::bf16 ? DType::bf16 : DType::f32);
  DISPATCH(stream, DType::f32,
           make_batch(stream, spec, images, rows, samples, epoch, t, clean, noisy));
}

}  // namespace tessera
