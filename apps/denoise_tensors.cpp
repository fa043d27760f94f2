#include "apps/denoise_tensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace tessera {
namespace {

constexpr int64_t kValuesPerBatch = 32 * 64 * 64;  // more are hardly faster and take more memory

// The element of an NCHW tensor as "[n,c,h,w]".
std::string index_text(int64_t i, const Shape& nchw) {
  const int64_t w = i % nchw[3], h = i / nchw[3] % nchw[2];
  const int64_t c = i / (nchw[2] * nchw[3]) % nchw[1], n = i / (nchw[1] * nchw[2] * nchw[3]);
  return concat('[', n, ',', c, ',', h, ',', w, ']');
}

// The shape of the file's images, after every check of them.
Shape check_images(const Denoiser& denoiser, const SafeTensors& file) {
  const SafeTensor& images = file.at("images");
  const int64_t channels = denoiser.config().channels;
  if (images.dtype != "F32" || images.shape.size() != 4 || images.shape[1] != channels)
    throw InputError(concat(file.origin(), ": tensor 'images' is ", images.dtype, ' ',
                            shape_text(images.shape), ", expected F32 [N,", channels, ",H,W]"));
  // Each side is checked before the product of them all is computed.
  if (!denoiser.config().fits(images.shape[2], images.shape[3]))
    throw InputError(concat(file.origin(), ": images of ", images.shape[3], "x", images.shape[2],
                            ", but the network's ", denoiser.config().levels,
                            " levels need sides that are multiples of ",
                            denoiser.config().side_unit()));
  const Shape shape(images.shape);
  for (int64_t i = 0; i < shape.numel(); ++i) {
    float value;
    std::memcpy(&value, images.data.data() + i * int64_t{sizeof value}, sizeof value);
    if (!std::isfinite(value))
      throw InputError(concat(file.origin(), ": images", index_text(i, shape), " is ", value,
                              ", expected a finite number"));
  }
  return shape;
}

// The n timesteps of the file, after every check of them.
template <class T>
std::vector<int32_t> convert_timesteps(const SafeTensors& file, std::optional<int> timestep) {
  const std::span<const std::byte> data = file.at("timesteps").data;
  std::vector<T> values(data.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), data.data(), data.size());
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] < 0 || values[i] > 999)
      throw InputError(
          concat(file.origin(), ": timesteps[", i, "] is ", values[i], ", expected 0 to 999"));
    if (timestep && values[i] != *timestep)
      throw UsageError(concat("--timestep is ", *timestep, ", but ", file.origin(), ": timesteps[",
                              i, "] is ", values[i]));
  }
  return {values.begin(), values.end()};
}

std::vector<int32_t> read_timesteps(const SafeTensors& file, int64_t n,
                                    std::optional<int> timestep) {
  const SafeTensor& timesteps = file.at("timesteps");
  const bool wide = timesteps.dtype == "I64";
  if ((!wide && timesteps.dtype != "I32") || timesteps.shape != std::vector<int64_t>{n})
    throw InputError(concat(file.origin(), ": tensor 'timesteps' is ", timesteps.dtype, ' ',
                            shape_text(timesteps.shape), ", expected I32 or I64 [", n, "]"));
  return wide ? convert_timesteps<int64_t>(file, timestep)
              : convert_timesteps<int32_t>(file, timestep);
}

// Copies between [N,C,H,W] (outside) and [N,H,W,C] (inside).
void nchw_to_nhwc(const std::byte* from, std::span<float> to, const Shape& nchw) {
  const int64_t C = nchw[1], plane = nchw[2] * nchw[3], size = C * plane;
  for (int64_t i = 0; i < int64_t(to.size()); ++i) {
    const int64_t n = i / size, pixel = i % size / C, c = i % C;
    std::memcpy(&to[i], from + (n * size + c * plane + pixel) * int64_t{sizeof(float)},
                sizeof(float));
  }
}

void nhwc_to_nchw(std::span<const float> from, float* to, const Shape& nchw) {
  const int64_t C = nchw[1], plane = nchw[2] * nchw[3], size = C * plane;
  for (int64_t i = 0; i < int64_t(from.size()); ++i)
    to[i / size * size + i % C * plane + i % size / C] = from[i];
}

}  // namespace

int64_t denoise_tensors(Denoiser& denoiser, const std::filesystem::path& input,
                        const std::filesystem::path& output, std::optional<int> timestep) {
  const SafeTensors file = SafeTensors::read(input);
  const Shape shape = check_images(denoiser, file);
  const int64_t N = shape[0], size = N > 0 ? shape.numel() / N : 0;
  const std::vector<int32_t> timesteps = read_timesteps(file, N, timestep);
  const int64_t batch = std::max<int64_t>(1, kValuesPerBatch / std::max<int64_t>(1, size));

  std::vector<float> result(static_cast<size_t>(shape.numel()));
  for (int64_t first = 0; first < N; first += batch) {
    const int64_t count = std::min(batch, N - first);
    const Shape nhwc{count, shape[2], shape[3], shape[1]};
    denoiser.prepare(nhwc);
    std::vector<float> values(static_cast<size_t>(nhwc.numel()));
    nchw_to_nhwc(file.at("images").data.data() + first * size * int64_t{sizeof(float)}, values,
                 shape);
    const auto noisy = Tensor::from<float>(denoiser.stream(), nhwc, values);
    const auto t = Tensor::from<int32_t>(
        denoiser.stream(), {count}, std::span(timesteps).subspan(size_t(first), size_t(count)));
    values = denoiser(noisy, t, input.string()).to_floats(denoiser.stream());
    nhwc_to_nchw(values, result.data() + first * size, shape);
  }
  write_safetensors(output, {{"output",
                              DType::f32,
                              {shape.sizes().begin(), shape.sizes().end()},
                              std::as_bytes(std::span(result))}});
  return N;
}

}  // namespace tessera
