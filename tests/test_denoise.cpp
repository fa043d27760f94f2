// denoise: tensor files against the network itself and against PyTorch, pictures and folders.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "apps/denoiser.h"
#include "apps/evaluate.h"
#include "apps/resize.h"
#include "core/simt/runtime.h"
#include "kernels/cpu/onednn.h"
#include "tests/denoise_case.h"
#include "tests/paths.h"
#include "tests/run_program.h"
#include "tests/temp_dir.h"

using namespace tessera;
namespace fs = std::filesystem;

namespace {

std::vector<float> nhwc_of(const std::vector<float>& nchw, int64_t N, int64_t C, int64_t plane) {
  std::vector<float> nhwc(nchw.size());
  for (int64_t n = 0; n < N; ++n)
    for (int64_t c = 0; c < C; ++c)
      for (int64_t i = 0; i < plane; ++i)
        nhwc[(n * plane + i) * C + c] = nchw[(n * C + c) * plane + i];
  return nhwc;
}

std::vector<float> floats_of(const SafeTensor& tensor) {
  std::vector<float> values(tensor.data.size() / sizeof(float));
  std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  return values;
}

// Norm of the difference over the norm of what is expected.
double relative_error(const std::vector<float>& found, const std::vector<float>& expected) {
  REQUIRE(found.size() == expected.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    difference += std::pow(double{found[i]} - expected[i], 2);
    norm += std::pow(double{expected[i]}, 2);
  }
  return std::sqrt(difference / norm);
}

std::vector<float> normalized(const Image& image) {
  std::vector<float> values;
  for (const uint8_t byte : image.pixels) values.push_back((float(byte) / 255.0f - 0.5f) / 0.5f);
  return values;
}

// The picture's output, computed without the program.
std::vector<int> expected_bytes(Network& network, const Image& image, int t) {
  const Shape shape{1, image.height, image.width, image.channels};
  std::vector<int> bytes;
  for (const float value : network.forward(shape, normalized(image), {t}))
    bytes.push_back(int(std::floor(std::clamp(value * 0.5 + 0.5, 0.0, 1.0) * 255 + 0.5)));
  return bytes;
}

// At most `off` apart: rounding to bytes may go either way.
bool near(const std::vector<uint8_t>& found, const std::vector<int>& expected, int off = 1) {
  if (found.size() != expected.size()) return false;
  for (size_t i = 0; i < found.size(); ++i)
    if (std::abs(int(found[i]) - expected[i]) > off) return false;
  return true;
}

std::vector<fs::path> golden_networks() {
  const char* given = std::getenv("TESSERA_GOLDEN_DIR");
  const fs::path folder = given ? given : fs::path(test_dir()) / "golden" / "data";
  std::vector<fs::path> paths;
  for (const auto& file : fs::directory_iterator(folder / "unet")) paths.push_back(file.path());
  return paths;
}

}  // namespace

TEST_CASE("denoise: a tensor file gives what the network gives", "[denoise]") {
  const TempDir dir;
  UNetConfig config = kSmall;
  config.channels = 3;
  Network network(config, dir / "w");
  const int64_t N = 5, C = 3, H = 8, W = 12;
  const std::vector<float> images = numbers(N * C * H * W);
  const std::vector<int32_t> t{0, 1, 250, 999, 500};
  write_safetensors(dir / "i32.safetensors",
                    {entry("images", {N, C, H, W}, images), entry("timesteps", {N}, t)});
  const std::vector<int64_t> wide(t.begin(), t.end());
  write_safetensors(dir / "i64.safetensors",
                    {entry("images", {N, C, H, W}, images), entry("timesteps", {N}, wide)});

  const std::vector<float> expected =
      network.forward({N, H, W, C}, nhwc_of(images, N, C, H * W), t);
  for (const std::string name : {"i32", "i64"}) {
    const fs::path output = dir / (name + "_out.safetensors");
    CHECK(denoise(files(dir / "w", dir / (name + ".safetensors"), output)) ==
          output.string() + ": 5 images\n");
    const SafeTensors file = SafeTensors::read(output);
    CHECK(file.names() == std::vector<std::string>{"output"});
    CHECK(file.at("output").dtype == "F32");
    CHECK(file.at("output").shape == std::vector<int64_t>{N, C, H, W});
    CHECK(relative_error(nhwc_of(floats_of(file.at("output")), N, C, H * W), expected) < 1e-5);
  }
}

TEST_CASE("denoise: many images go in batches, and none is fine", "[denoise]") {
  const TempDir dir;
  Network network(kSmall, dir / "w");
  const int64_t N = 2100, H = 8, W = 8;  // the network sees at most 2048 of them at a time
  const std::vector<float> images = numbers(N * H * W);
  std::vector<int32_t> t;
  for (int i = 0; i < N; ++i) t.push_back(i % 1000);
  write_safetensors(dir / "many.safetensors",
                    {entry("images", {N, 1, H, W}, images), entry("timesteps", {N}, t)});
  denoise(files(dir / "w", dir / "many.safetensors", dir / "out.safetensors"));
  const std::vector<float> found =
      floats_of(SafeTensors::read(dir / "out.safetensors").at("output"));
  CHECK(relative_error(found, network.forward({N, H, W, 1}, images, t)) < 1e-5);

  const std::vector<float> none;
  const std::vector<int32_t> no_t;
  write_safetensors(dir / "none.safetensors",
                    {entry("images", {0, 1, 8, 8}, none), entry("timesteps", {0}, no_t)});
  denoise(files(dir / "w", dir / "none.safetensors", dir / "none_out.safetensors"));
  CHECK(SafeTensors::read(dir / "none_out.safetensors").at("output").shape ==
        std::vector<int64_t>{0, 1, 8, 8});
}

TEST_CASE("denoise: weights from PyTorch give PyTorch's output", "[denoise][golden]") {
  for (const fs::path& path : golden_networks()) {
    CAPTURE(path);
    const TempDir dir;
    const SafeTensors golden = SafeTensors::read(path);
    std::vector<SafeTensorEntry> weights;
    // With BatchNorms the goldens say what evaluation gives after training.
    const bool trained = golden.contains("eval.out");
    const std::string prefix = trained ? "after." : "param.", result = trained ? "eval.out" : "out";
    for (const std::string& name : golden.names())
      if (name.starts_with(prefix))
        weights.push_back({name.substr(prefix.size()),
                           golden.at(name).dtype == "I64" ? DType::i64 : DType::f32,
                           golden.at(name).shape, golden.at(name).data});
    write_safetensors(dir / "weights.safetensors", weights);  // PyTorch writes no metadata
    const SafeTensor &noisy = golden.at("noisy"), &t = golden.at("t");
    write_safetensors(dir / "in.safetensors",
                      {{"images", DType::f32, noisy.shape, noisy.data},
                       {"timesteps", t.dtype == "I64" ? DType::i64 : DType::i32, t.shape, t.data}});
    Arguments network;
    for (const UNetOption& option : unet_options()) {
      std::string key = option.name;
      std::ranges::replace(key, '-', '_');
      if (!golden.metadata().contains(key)) continue;
      network.push_back("--" + option.name);
      if (!option.is_flag()) network.push_back(golden.metadata().at(key));
    }
    for (const auto& [precision, tolerance] : {std::pair("f32", 1e-4), {"bf16", 4e-2}}) {
      const fs::path out_file = dir / (std::string(precision) + ".safetensors");
      Arguments arguments = network;
      arguments.insert(arguments.end(), {"--device", "cpu", "--precision", precision});
      const Finished run = run_program(
          "denoise",
          files(dir / "weights.safetensors", dir / "in.safetensors", out_file, arguments));
      CHECK(run.err == "");
      REQUIRE(run.status == 0);
      const SafeTensors out = SafeTensors::read(out_file);
      CHECK(out.at("output").shape == golden.at(result).shape);
      CHECK(relative_error(floats_of(out.at("output")), floats_of(golden.at(result))) < tolerance);
    }
  }
}

TEST_CASE("denoise: the activation is the metadata's or the flag's", "[denoise]") {
  const TempDir dir;
  UNetConfig config = kSmall;
  config.activation = Activation::GeluTanh;
  Network tanh(config, dir / "w");
  const SafeTensors file = SafeTensors::read(dir / "w");
  std::vector<SafeTensorEntry> entries;
  for (const std::string& name : file.names())
    entries.push_back({name, DType::f32, file.at(name).shape, file.at(name).data});
  write_safetensors(dir / "bare", entries);
  const std::vector<float> images = numbers(64);
  const std::vector<int32_t> t{500};
  write_safetensors(dir / "in.safetensors",
                    {entry("images", {1, 1, 8, 8}, images), entry("timesteps", {1}, t)});
  const auto error = [&](const std::string& weights, const Arguments& more) {
    const fs::path out = dir / "out.safetensors";
    denoise(files(dir / weights, dir / "in.safetensors", out, more));
    const double value = relative_error(floats_of(SafeTensors::read(out).at("output")),
                                        tanh.forward({1, 8, 8, 1}, images, t));
    fs::remove(out);
    return value;
  };
  CHECK(error("w", {}) < 1e-5);
  CHECK(error("w", {"--activation", "gelu-tanh", "--groups", "4"}) < 1e-5);
  CHECK(error("bare", {"--groups", "4", "--activation", "gelu-tanh"}) < 1e-5);
  CHECK(error("bare", {"--groups", "4"}) > 1e-5);
  CHECK(error("bare", {"--groups", "2", "--activation", "gelu-tanh"}) > 1e-3);
}

TEST_CASE("denoise: a picture keeps its size, or is stretched", "[denoise]") {
  for (const int channels : {1, 3}) {
    CAPTURE(channels);
    const TempDir dir;
    UNetConfig config = kSmall;
    config.channels = channels;
    Network network(config, dir / "w");
    const Image image = picture(12, 8, channels);
    write_png(dir / "in.png", image);

    const std::string out = (dir / "out.png").string();
    CHECK(denoise(files(dir / "w", dir / "in.png", out, {"--timestep", "300"})) == out + "\n");
    const Image found = read_image(out, channels);
    CHECK(found.width == 12);
    CHECK(found.height == 8);
    CHECK(near(found.pixels, expected_bytes(network, image, 300)));
    CHECK_FALSE(near(found.pixels, expected_bytes(network, image, 900), 0));

    Image square{16, 16, channels, std::vector<uint8_t>(size_t(16 * 16 * channels))};
    resize_bilinear(image.pixels.data(), 8, 12, channels, 16, 16, square.pixels.data());
    denoise(files(dir / "w", dir / "in.png", out,
                  {"--timestep", "300", "--image-size", "16", "--force"}));
    CHECK(near(read_image(out, channels).pixels, expected_bytes(network, square, 300)));
  }
}

TEST_CASE("denoise: --add-noise prints how near noisy and denoised are", "[denoise]") {
  const TempDir dir;
  Network network(kSmall, dir / "w");
  const Image image = picture(32, 32, 1);
  write_png(dir / "in.png", image);
  const Arguments noise{"--timestep", "500", "--add-noise", "--noise-level", "0.8", "--force"};
  const auto run = [&](const std::string& seed) {
    Arguments arguments = files(dir / "w", dir / "in.png", dir / "out.png", noise);
    arguments.insert(arguments.end(), {"--seed", seed});
    const std::string line = denoise(arguments);
    return std::pair{line, read_text(dir / "out.png")};
  };
  const auto [line, bytes] = run("3");
  CHECK(run("0010") == run("10"));  // not octal
  const std::string start = (dir / "out.png").string() + ": noisy ";
  REQUIRE(line.starts_with(start));
  double noisy = 0, denoised = 0;
  REQUIRE(std::sscanf(line.c_str() + start.size(), "%lf dB, denoised %lf dB\n", &noisy,
                      &denoised) == 2);

  // The same from the kernels: evaluation noise of image 0, sigma 0.4.
  const Denoised expected =
      denoise_batch(network.stream, network.model, {3, 0, 0.8f}, image.pixels, {0}, 32, 500);
  const auto psnr = [&](const Tensor& tensor) {
    return psnr_of(squared_error(network.stream, tensor, expected.clean) / (32 * 32));
  };
  CHECK(noisy == Approx(psnr(expected.noisy)).margin(0.006));
  CHECK(denoised == Approx(psnr(expected.denoised)).margin(0.006));
  CHECK(noisy == Approx(10 * std::log10(4 / 0.16)).margin(0.5));

  CHECK(run("3") == std::pair{line, bytes});
  CHECK(run("4").first != line);
}

TEST_CASE("denoise: a folder of mixed pictures", "[denoise]") {
  const TempDir dir;
  Network network(kSmall, dir / "w");
  fs::create_directory(dir / "in");
  const Image grey = picture(8, 16, 1), colour = picture(12, 4, 3);
  write_png(dir / "in" / "grey.PNG", grey);
  write_png(dir / "in" / "colour one.png", colour);
  fs::copy(fs::path(test_dir()) / "golden" / "images" / "grey.jpg", dir / "in" / "photo.jpg");
  write_text(dir / "in" / "notes.txt", "ignored");
  write_text(dir / "in" / ".hidden.png", "ignored");
  fs::create_directory(dir / "in" / "folder.png");
  const fs::path out = dir / "new" / "out";
  const Arguments keep = files(dir / "w", dir / "in", out, {"--timestep", "9"});
  Arguments stretch = keep;
  stretch.insert(stretch.end(), {"--image-size", "16", "--add-noise"});

  // Nothing is written when one input does not fit.
  CHECK(message_of<InputError>([&] { denoise(keep); }) ==
        (dir / "in" / "photo.jpg").string() +
            ": 37x29 pixels, but the network's 2 levels need sides that are multiples of 4 "
            "(--image-size S stretches it to SxS)");
  CHECK_FALSE(fs::exists(dir / "new"));

  const std::string report = denoise(stretch);
  CHECK(std::count(report.begin(), report.end(), '\n') == 4);
  CHECK(report.find("\nall 3 images: noisy ") != std::string::npos);
  std::vector<std::string> written;
  for (const auto& file : fs::directory_iterator(out)) {
    written.push_back(file.path().filename().string());
    CHECK(read_image(file.path(), 1).width == 16);
  }
  std::sort(written.begin(), written.end());
  CHECK(written == std::vector<std::string>{"colour one.png", "grey.png", "photo.png"});

  fs::remove(dir / "in" / "photo.jpg");
  CHECK(message_of<InputError>([&] { denoise(keep); }) ==
        (out / "colour one.png").string() + " exists already (--force replaces it)");
  fs::remove_all(out);
  CHECK(denoise(keep) ==
        (out / "colour one.png").string() + "\n" + (out / "grey.png").string() + "\n");
  CHECK(near(read_image(out / "grey.png", 1).pixels, expected_bytes(network, grey, 9)));
  const Image luma = read_image(dir / "in" / "colour one.png", 1);
  CHECK(near(read_image(out / "colour one.png", 1).pixels, expected_bytes(network, luma, 9)));

  fs::remove_all(out);
  write_png(dir / "in" / "grey.jpeg", grey);  // told apart by content
  CHECK(message_of<InputError>([&] { denoise(keep); }) ==
        (dir / "in" / "grey.jpeg").string() + " and " + (dir / "in" / "grey.PNG").string() +
            " would both become " + (out / "grey.png").string());
}

TEST_CASE("denoise: what is kept for one size goes when another one comes", "[denoise]") {
  const TempDir dir;
  Network network(kSmall, dir / "w");
  const auto load = [&] { return Denoiser::load(Device::open(DeviceType::cpu), dir / "w"); };
  const auto run = [](Denoiser& denoiser, int64_t side) {
    const Shape shape{1, side, side, 1};
    denoiser.prepare(shape);
    const Tensor x = Tensor::from<float>(denoiser.stream(), shape, numbers(side * side));
    denoiser(x, Tensor::from<int32_t>(denoiser.stream(), {1}, std::vector<int32_t>{5}), "x");
    return denoiser.stream().state<cpu::OneDnn>().primitives();
  };
  Denoiser denoiser = load(), fresh = load();
  const Pool& pool = *denoiser.stream().device().pool();
  const int64_t primitives = run(denoiser, 16), misses = pool.misses();
  CHECK(run(denoiser, 16) == primitives);
  CHECK(pool.misses() == misses);
  CHECK(run(denoiser, 32) == run(fresh, 32));
  CHECK(pool.misses() > misses);
}

TEST_CASE("denoise: each image has its own noise, and the last line is of all pixels",
          "[denoise]") {
  const TempDir dir;
  Network network(kSmall, dir / "w");
  fs::create_directory(dir / "in");
  const Image a = picture(8, 8, 1), b = picture(16, 16, 1);
  write_png(dir / "in" / "a.png", a);
  write_png(dir / "in" / "b.png", b);
  const Arguments noise{"--timestep", "500", "--add-noise"};
  const std::string report = denoise(files(dir / "w", dir / "in", dir / "out", noise));
  double found[6] = {};
  const std::string lines = "%*[^:]: noisy %lf dB, denoised %lf dB\n";
  REQUIRE(std::sscanf(report.c_str(), (lines + lines + lines).c_str(), found, found + 1, found + 2,
                      found + 3, found + 4, found + 5) == 6);
  double noisy = 0, denoised = 0;
  for (int64_t i = 0; i < 2; ++i) {
    const Image& image = i == 0 ? a : b;
    const Denoised one = denoise_batch(network.stream, network.model, {0, 0, 0.5f}, image.pixels,
                                       {i}, image.width, 500);
    const double e = squared_error(network.stream, one.noisy, one.clean),
                 d = squared_error(network.stream, one.denoised, one.clean),
                 n = double(image.pixels.size());
    CHECK(found[2 * i] == Approx(psnr_of(e / n)).margin(0.006));
    CHECK(found[2 * i + 1] == Approx(psnr_of(d / n)).margin(0.006));
    noisy += e, denoised += d;
  }
  CHECK(found[4] == Approx(psnr_of(noisy / (64 + 256))).margin(0.006));
  CHECK(found[5] == Approx(psnr_of(denoised / (64 + 256))).margin(0.006));

  // One image has no summary; a link that leads nowhere is an output that exists.
  const std::string one = denoise(files(dir / "w", dir / "in" / "a.png", dir / "one.png", noise));
  CHECK(std::count(one.begin(), one.end(), '\n') == 1);
  fs::create_symlink(dir / "nowhere", dir / "link.png");
  CHECK_THAT(
      message_of<InputError>([&] {
        denoise(files(dir / "w", dir / "in" / "a.png", dir / "link.png", {"--timestep", "5"}));
      }),
      Catch::Contains("link.png exists already"));
}

TEST_CASE("denoise: tf32 after another size, too", "[denoise][cuda]") {
  const TempDir dir;
  Network network(kSmall, dir / "w");
  const auto run = [&](const Precision& precision, int64_t side) {
    Denoiser denoiser = Denoiser::load(Device::open(DeviceType::simt, 2), dir / "w", {}, precision);
    denoiser.prepare({1, side, side, 1});
    const Tensor x =
        Tensor::from<float>(denoiser.stream(), {1, side, side, 1}, numbers(side * side));
    return denoiser(x, Tensor::from<int32_t>(denoiser.stream(), {1}, std::vector<int32_t>{5}), "x")
        .to_vector<float>(denoiser.stream());
  };
  CHECK(run(Precision::tf32(), 8) != run(Precision::f32(), 8));
}

TEST_CASE("denoise: memory of another size goes back", "[denoise][cuda]") {
  const TempDir dir;
  Network network(kSmall, dir / "w");
  const auto device = Device::open(DeviceType::simt, 2);
  Denoiser denoiser = Denoiser::load(device, dir / "w");
  const auto run = [&](int64_t side) {
    const Shape shape{1, side, side, 1};
    denoiser.prepare(shape);
    const size_t before = simt::memory_use().bytes;
    const Tensor x = Tensor::from<float>(denoiser.stream(), shape, numbers(side * side));
    denoiser(x, Tensor::from<int32_t>(denoiser.stream(), {1}, std::vector<int32_t>{5}), "x");
    return before;
  };
  const size_t fresh = run(8);
  run(32);
  CHECK(run(8) <= fresh + 65536);
}
