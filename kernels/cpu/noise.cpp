// What makes a training batch of images: timesteps, normalisation, noise (core/rng.h). Elements of
// a sample are numbered in storage order (NHWC); numbers 4i .. 4i+3 come from Philox block i. Only
// f32 is defined: the bits are part of the contract, the same on every device and in every batch
// split, so there is no f64 version to compare them with.
#include <algorithm>
#include <cmath>

#include "core/rng.h"
#include "kernels/dispatch.h"

namespace tessera {
namespace cpu {

// The samples' numbers as the key holds them. Checked here: nothing may throw in a parallel loop.
void check_samples(const char* what, const Tensor& samples) {
  for (int64_t i = 0; i < samples.numel(); ++i) {
    const int64_t sample = samples.data<int64_t>()[i];
    ENSURE(sample >= 0 && sample <= UINT32_MAX, what, ": sample ", sample, ", expected 0 to ",
           UINT32_MAX);
  }
}

void draw_timesteps(const NoiseSpec& spec, const Tensor& samples, Tensor& t) {
  check_samples("draw_timesteps", samples);
  for (int64_t i = 0; i < samples.numel(); ++i) {
    const uint32_t sample = uint32_t(samples.data<int64_t>()[i]);
    const RngKey key{spec.seed, spec.epoch, sample, Purpose::timestep};
    t.data<int32_t>()[i] = int32_t(uniform_below(random4(key, 0)[0], 1000));
  }
}

void normalize_images(const Tensor& images, Tensor& clean) {
  const uint8_t* from = images.data<uint8_t>();
  float* to = clean.data<float>();
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < images.numel(); ++i) to[i] = (float(from[i]) / 255.0f - 0.5f) / 0.5f;
}

void add_noise(const NoiseSpec& spec, NoiseUse use, const Tensor& samples, const Tensor& t,
               const Tensor& clean, Tensor& noisy) {
  check_samples("add_noise", samples);
  const int64_t N = samples.numel(), size = N ? clean.numel() / N : 0, blocks = (size + 3) / 4;
  const int64_t* sample = samples.data<int64_t>();
  const int32_t* timestep = t.data<int32_t>();
  const float* from = clean.data<float>();
  float* to = noisy.data<float>();
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t n = 0; n < N; ++n)
    for (int64_t block = 0; block < blocks; ++block) {
      const RngKey key =
          use == NoiseUse::Training
              ? RngKey{spec.seed, spec.epoch, uint32_t(sample[n]), Purpose::noise}
              : RngKey{spec.seed, uint32_t(timestep[n]), uint32_t(sample[n]), Purpose::eval_noise};
      const float sigma = sigma_of(timestep[n], spec.noise_level);
      const std::array<float, 4> z = normal4(key, uint32_t(block));
      for (int64_t i = 4 * block; i < std::min(size, 4 * block + 4); ++i)
        to[n * size + i] = fmaf(sigma, z[i % 4], from[n * size + i]);
    }
}

}  // namespace cpu

namespace {

void expect_f32_kernels(Stream& stream, const char* what, DType dtype) {
  ENSURE(select_backend(stream, dtype) == Backend::cpu, what,
         " is defined in f32 only: its bits are the same on every device");
}

}  // namespace

void draw_timesteps(Stream& stream, const NoiseSpec& spec, const Tensor& samples, Tensor& t) {
  ENSURE(samples.rank() == 1, "draw_timesteps: samples is ", samples.shape(), ", expected [N]");
  expect("draw_timesteps: samples", samples, samples.shape(), DType::i64);
  expect("draw_timesteps: t", t, samples.shape(), DType::i32);
  expect_f32_kernels(stream, "draw_timesteps", DType::f32);
  cpu::draw_timesteps(spec, samples, t);
}

void normalize_images(Stream& stream, const Tensor& images, Tensor& clean) {
  expect("normalize_images: images", images, images.shape(), DType::u8);
  expect_f32_kernels(stream, "normalize_images", clean.dtype());
  expect("normalize_images: clean", clean, images.shape(), DType::f32);
  cpu::normalize_images(images, clean);
}

void add_noise(Stream& stream, const NoiseSpec& spec, NoiseUse use, const Tensor& samples,
               const Tensor& t, const Tensor& clean, Tensor& noisy) {
  expect_f32_kernels(stream, "add_noise", clean.dtype());
  ENSURE(clean.rank() == 4, "add_noise: clean is ", clean.shape(), ", expected [N,H,W,C]");
  expect("add_noise: samples", samples, {clean.dim(0)}, DType::i64);
  expect("add_noise: t", t, {clean.dim(0)}, DType::i32);
  expect("add_noise: noisy", noisy, clean.shape(), DType::f32);
  cpu::add_noise(spec, use, samples, t, clean, noisy);
}

}  // namespace tessera
