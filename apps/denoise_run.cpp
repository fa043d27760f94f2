// Plans every output before anything is computed, then denoises one image (or one batch of a
// tensor file) at a time.
#include "apps/denoise_run.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "apps/denoise_tensors.h"
#include "apps/denoiser.h"
#include "apps/device_choice.h"
#include "apps/evaluate.h"
#include "apps/image.h"
#include "apps/image_folder.h"
#include "apps/resize.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

struct Job {
  fs::path input, output;
};

bool is_tensor_name(const fs::path& path) { return path.extension() == ".safetensors"; }

// Every image of a folder, by name, with its place in the output folder.
std::vector<Job> plan_folder(const DenoiseOptions& options) {
  if (fs::exists(options.output) && !fs::is_directory(options.output))
    throw UsageError(concat("--output ", options.output.string(), " is not a folder, and --input ",
                            options.input.string(), " is one"));
  const std::vector<fs::path> inputs = list_images(options.input);
  if (inputs.empty())
    throw InputError(concat(options.input.string(), ": no .png, .jpg or .jpeg file in it"));
  std::map<fs::path, fs::path> source_of;
  std::vector<Job> jobs;
  for (const fs::path& input : inputs) {
    const fs::path output = options.output / input.filename().replace_extension(".png");
    const auto [other, is_new] = source_of.emplace(output, input);
    if (!is_new)
      throw InputError(concat(input.string(), " and ", other->second.string(),
                              " would both become ", output.string()));
    jobs.push_back({input, output});
  }
  return jobs;
}

std::vector<Job> plan_file(const DenoiseOptions& options) {
  const char* extension = is_tensor_name(options.input) ? ".safetensors" : ".png";
  if (options.output.extension() != extension)
    throw UsageError(concat("--output is ", options.output.string(),
                            ", expected a file name that ends in ", extension));
  const fs::path parent = options.output.parent_path();
  if (!parent.empty() && !fs::is_directory(parent))
    throw InputError(concat("cannot write ", options.output.string(), ": ", parent.string(),
                            " is not a folder"));
  return {{options.input, options.output}};
}

// What is read and written. Throws when an output exists, unless --force was given.
std::vector<Job> plan(const DenoiseOptions& options) {
  if (!fs::exists(options.input))
    throw InputError(concat("cannot read ", options.input.string(), ": no such file or folder"));
  const std::vector<Job> jobs =
      fs::is_directory(options.input) ? plan_folder(options) : plan_file(options);
  for (const Job& job : jobs) {
    std::error_code none;
    if (fs::equivalent(job.output, options.weights, none))
      throw UsageError(concat("--output ", job.output.string(), " is the file of --weights"));
    if (!options.force && fs::exists(fs::symlink_status(job.output)))
      throw InputError(concat(job.output.string(), " exists already (--force replaces it)"));
  }
  return jobs;
}

// Flags that mean nothing for this kind of input.
void check_flags(const DenoiseOptions& options, bool tensors) {
  if (!tensors && !options.timestep)
    throw UsageError(
        concat("--timestep is required: how noisy ", options.input.string(), " is, 0 to 999"));
  if (tensors && (options.image_size || options.add_noise))
    throw UsageError(concat(options.image_size ? "--image-size" : "--add-noise",
                            " is for PNG and JPEG images, and --input is ",
                            options.input.string()));
  if (!std::isfinite(options.noise_level))
    throw UsageError(concat("--noise-level is ", options.noise_level, ", expected a number"));
}

// ---- Images

// Sums of squared errors, in [-1, 1] units, over `count` values.
struct Errors {
  double noisy = 0, denoised = 0;
  int64_t count = 0;

  void add(const Errors& other) {
    noisy += other.noisy;
    denoised += other.denoised;
    count += other.count;
  }
  std::string text() const {
    return fmt::format("noisy {:.2f} dB, denoised {:.2f} dB", psnr_of(noisy / double(count)),
                       psnr_of(denoised / double(count)));
  }
};

Image load_image(const Denoiser& denoiser, const fs::path& path, std::optional<int> size) {
  Image image = read_image(path, int(denoiser.config().channels));
  if (size) {
    Image resized{*size, *size, image.channels, {}};
    resized.pixels.resize(size_t(*size) * size_t(*size) * size_t(image.channels));
    resize_bilinear(image.pixels.data(), image.height, image.width, image.channels, *size, *size,
                    resized.pixels.data());
    return resized;
  }
  if (!denoiser.config().fits(image.height, image.width))
    throw InputError(
        concat(path.string(), ": ", image.width, "x", image.height, " pixels, but the network's ",
               denoiser.config().levels, " levels need sides that are multiples of ",
               denoiser.config().side_unit(), " (--image-size S stretches it to SxS)"));
  return image;
}

// Denoises `image` in place. index: of the image, for the noise.
Errors denoise_image(Denoiser& denoiser, const DenoiseOptions& options, const std::string& name,
                     int64_t index, Image& image) {
  const Shape shape{1, image.height, image.width, image.channels};
  denoiser.prepare(shape);
  Stream& stream = denoiser.stream();
  const auto bytes = Tensor::from<uint8_t>(stream, shape, image.pixels);
  const auto t = Tensor::from<int32_t>(stream, {1}, std::array<int32_t, 1>{*options.timestep});
  Tensor clean = Tensor::empty(stream, shape);
  normalize_images(stream, bytes, clean);

  Tensor noisy = clean;
  if (options.add_noise) {
    const auto sample = Tensor::from<int64_t>(stream, {1}, std::array<int64_t, 1>{index});
    noisy = Tensor::empty(stream, shape);
    add_noise(stream, {uint64_t(options.seed), 0, float(options.noise_level)}, NoiseUse::Evaluation,
              sample, t, clean, noisy);
  }
  const Tensor denoised = denoiser(noisy, t, name);
  std::ranges::transform(denoised.to_floats(stream), image.pixels.begin(), to_byte);
  if (!options.add_noise) return {};
  return {squared_error(stream, noisy, clean), squared_error(stream, denoised, clean),
          shape.numel()};
}

void denoise_images(Denoiser& denoiser, const std::vector<Job>& jobs, const DenoiseOptions& options,
                    std::ostream& out) {
  if (options.image_size && !denoiser.config().fits(*options.image_size, *options.image_size))
    throw UsageError(concat("--image-size is ", *options.image_size, ", but the network's ",
                            denoiser.config().levels, " levels need a multiple of ",
                            denoiser.config().side_unit()));
  // All inputs are read once in vain: a broken one must show before the first output is written.
  for (const Job& job : jobs) load_image(denoiser, job.input, options.image_size);
  std::error_code error;
  if (fs::is_directory(options.input)) fs::create_directories(options.output, error);
  if (error) throw InputError(concat("--output ", options.output.string(), ": ", error.message()));
  Errors total;
  for (size_t i = 0; i < jobs.size(); ++i) {
    const auto& [input, output] = jobs[i];
    Image image = load_image(denoiser, input, options.image_size);
    const Errors errors = denoise_image(denoiser, options, input.string(), int64_t(i), image);
    write_png(output, image);
    out << output.string();
    if (options.add_noise) out << ": " << errors.text();
    out << std::endl;
    total.add(errors);
  }
  if (options.add_noise && jobs.size() > 1)
    out << "all " << jobs.size() << " images: " << total.text() << '\n';
}

}  // namespace

void run_denoise(const DenoiseOptions& options, std::ostream& out) {
  const bool tensors = !fs::is_directory(options.input) && is_tensor_name(options.input);
  check_flags(options, tensors);
  const std::vector<Job> jobs = plan(options);
  const std::shared_ptr<Device> device =
      Device::open(chosen_device(options.device), options.threads);
  const Precision precision = precision_of(
      resolve_precision(options.precision, name_of(device->type()), device->info().capability));
  Denoiser denoiser = Denoiser::load(device, options.weights, options.network, precision);
  if (tensors) {
    const int64_t n = denoise_tensors(denoiser, options.input, options.output, options.timestep);
    out << options.output.string() << ": " << n << " images\n";
  } else {
    denoise_images(denoiser, jobs, options, out);
  }
}

}  // namespace tessera
