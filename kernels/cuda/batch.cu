// What makes a training batch: timesteps, normalisation, noise, and all of it in one pass from the
// data set in device memory. One thread per Philox block, that is per four neighbouring elements of
// an image (kernels/cpu/noise.cpp); the numbers are the CPU's, bit for bit. Bound by memory and the
// integer multiplications of Philox. And the sinusoidal embedding of the timesteps, which is tiny.
#include "kernels/cuda/kernel.h"
#include "kernels/noise.h"

namespace tessera::TESSERA_CUDA {
namespace {

struct DrawTimesteps {
  NoiseSpec spec;
  const int64_t* samples;
  int32_t* t;
  __device__ void operator()(int64_t n) const { t[n] = timestep_of(spec, uint32_t(samples[n])); }
};

struct Normalize {
  const uint8_t* images;
  float* clean;
  __device__ void operator()(int64_t i) const { clean[i] = normalized(images[i]); }
};

// Images of `size` elements in blocks of four, which Philox draws at a time; the last may hold
// fewer.
struct PhiloxBlocks {
  int64_t size, count;
  PhiloxBlocks(const Tensor& images) : size(1), count(0) {
    for (int i = 1; i < images.rank(); ++i) size *= images.dim(i);
    count = std::max<int64_t>(ceil_div(size, 4), 1);
  }
  // An image without pixels has a block, for its timestep, but nothing that a pack could read.
  bool packed() const { return size > 0; }
  __device__ int of(int64_t block) const { return int(min(int64_t{4}, size - 4 * block)); }
};

// Four neighbouring elements: as one vector, or `count` of them one by one.
template <bool packed, class T>
__device__ __forceinline__ Pack<T, 4> load_four(const T* from, int count) {
  if constexpr (packed) {
    return Pack<T, 4>::load(from);
  } else {
    Pack<T, 4> four{};
    for (int i = 0; i < 4; ++i)
      if (i < count) four.values[i] = from[i];
    return four;
  }
}
template <bool packed, class T>
__device__ __forceinline__ void store_four(T* to, const Pack<T, 4>& four, int count) {
  if constexpr (packed) {
    four.store(to);
  } else {
    for (int i = 0; i < 4; ++i)
      if (i < count) to[i] = four.values[i];
  }
}

template <bool packed>
struct AddNoise {
  NoiseSpec spec;
  NoiseUse use;
  const int64_t* samples;
  const int32_t* t;
  const float* clean;
  float* noisy;
  PhiloxBlocks blocks;
  __device__ void operator()(int64_t i) const {
    const int64_t n = i / blocks.count, block = i - n * blocks.count;
    const int64_t at = n * blocks.size + 4 * block;
    const int count = blocks.of(block);
    const uint32_t sample = uint32_t(samples[n]);
    const RngKey key = noise_key(spec, use, sample, t[n]);
    const std::array<float, 4> z = normal4(key, uint32_t(block));
    const float sigma = sigma_of(t[n], spec.noise_level);
    Pack<float, 4> four = load_four<packed>(clean + at, count);
    for (int j = 0; j < 4; ++j) four.set(j, fmaf(sigma, z[j], four[j]));
    store_four<packed>(noisy + at, four, count);
  }
};

template <class T, bool packed>
struct MakeBatch {
  NoiseSpec spec;
  const uint8_t* images;  // [M,size]
  int64_t M;
  const int64_t *rows, *samples, *epoch;
  int32_t* t;
  float* clean;
  T* noisy;
  PhiloxBlocks blocks;
  __device__ void operator()(int64_t i) const {
    const int64_t n = i / blocks.count, block = i - n * blocks.count;
    const int64_t to = n * blocks.size + 4 * block;
    const int count = blocks.of(block);
    const uint32_t sample = uint32_t(samples[n]);
    const int64_t row = rows[n];
    NoiseSpec now = spec;
    if (epoch) now.epoch = uint32_t(*epoch);
    const int32_t step = timestep_of(now, sample);
    if (block == 0) t[n] = step;

    Pack<float, 4> image;
    if (row >= 0 && row < M) {
      const auto pixels = load_four<packed>(images + row * blocks.size + 4 * block, count);
      for (int j = 0; j < 4; ++j) image.set(j, normalized(pixels.values[j]));
    } else {
      for (int j = 0; j < 4; ++j) image.set(j, __uint_as_float(0x7FC00000));  // NaN
    }
    const std::array<float, 4> z =
        normal4(noise_key(now, NoiseUse::Training, sample, step), uint32_t(block));
    const float sigma = sigma_of(step, spec.noise_level);
    Pack<T, 4> noised;
    for (int j = 0; j < 4; ++j) noised.set(j, fmaf(sigma, z[j], image[j]));
    store_four<packed>(clean + to, image, count);
    store_four<packed>(noisy + to, noised, count);
  }
};

// y [N,dim] = [sin(t f), cos(t f)], f_i = 10000^(-i/half). The angle reaches 1000 and more, where a
// float has few digits left: it is a double until whole turns are taken off.
template <class T>
struct TimestepEmbedding {
  const int32_t* t;  // [N]
  T* y;
  int64_t half;
  // Element i of [N,half]: a sine and its cosine.
  __device__ void operator()(int64_t i) const {
    const int64_t n = i / half, k = i % half;
    constexpr double kLog10000 = 9.210340371976184, kTurn = 6.283185307179586;
    const double turns = t[n] * exp(-kLog10000 * double(k) / double(half)) / kTurn;
    float cosine, sine;
    cos_sin_turn(float(turns - floor(turns)), cosine, sine);
    T* const row = y + n * 2 * half;
    row[k] = from_float<T>(sine);
    row[k + half] = from_float<T>(cosine);
  }
};

}  // namespace

void draw_timesteps(Stream& stream, const NoiseSpec& spec, const Tensor& samples, Tensor& t) {
  for_each(stream, samples.numel(),
           DrawTimesteps{spec, samples.data<int64_t>(), t.data<int32_t>()});
}

void normalize_images(Stream& stream, const Tensor& images, Tensor& clean) {
  for_each(stream, images.numel(), Normalize{images.data<uint8_t>(), clean.data<float>()});
}

void add_noise(Stream& stream, const NoiseSpec& spec, NoiseUse use, const Tensor& samples,
               const Tensor& t, const Tensor& clean, Tensor& noisy) {
  const PhiloxBlocks blocks(clean);
  const auto add = [&](auto packed) {
    for_each(stream, samples.numel() * blocks.count,
             AddNoise<packed.value>{spec, use, samples.data<int64_t>(), t.data<int32_t>(),
                                    clean.data<float>(), noisy.data<float>(), blocks});
  };
  blocks.packed() && packs_fit<float, 4>(blocks.size, clean.data<float>(), noisy.data<float>())
      ? add(std::true_type{})
      : add(std::false_type{});
}

void make_batch(Stream& stream, const NoiseSpec& spec, const Tensor& images, const Tensor& rows,
                const Tensor& samples, const Tensor& epoch, Tensor& t, Tensor& clean,
                Tensor& noisy) {
  const PhiloxBlocks blocks(images);
  with_storage(noisy.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const auto make = [&](auto packed) {
      for_each(stream, rows.numel() * blocks.count,
               MakeBatch<T, packed.value>{spec, images.data<uint8_t>(), images.dim(0),
                                          rows.data<int64_t>(), samples.data<int64_t>(),
                                          data_or_null<int64_t>(epoch), t.data<int32_t>(),
                                          clean.data<float>(), noisy.data<T>(), blocks});
    };
    blocks.packed() && packs_fit<uint8_t, 4>(blocks.size, images.data<uint8_t>()) &&
            packs_fit<float, 4>(blocks.size, clean.data<float>()) &&
            packs_fit<T, 4>(blocks.size, noisy.data<T>())
        ? make(std::true_type{})
        : make(std::false_type{});
  });
}

void timestep_embedding_fwd(Stream& stream, const Tensor& t, Tensor& y) {
  with_storage(y.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t half = y.dim(1) / 2;
    for_each(stream, t.numel() * half, TimestepEmbedding<T>{t.data<int32_t>(), y.data<T>(), half});
  });
}

}  // namespace tessera::TESSERA_CUDA
