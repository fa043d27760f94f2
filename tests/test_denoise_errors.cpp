// denoise: everything that can be wrong with flags and files, and what it says then.
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "tests/denoise_case.h"
#include "tests/run_program.h"
#include "tests/temp_dir.h"

using namespace tessera;
namespace fs = std::filesystem;

TEST_CASE("denoise: tensor files that cannot be used are named", "[denoise]") {
  const TempDir dir;
  Network network(kSmall, dir / "w");
  const fs::path input = dir / "in.safetensors";
  const std::vector<float> images = numbers(2 * 64);
  const std::vector<int32_t> t{0, 999};
  const auto message = [&](const std::vector<SafeTensorEntry>& entries,
                           const Arguments& more = {}) {
    write_safetensors(input, entries);
    const std::string text =
        message_of<Error>([&] { denoise(files(dir / "w", input, dir / "out.safetensors", more)); });
    CHECK_FALSE(fs::exists(dir / "out.safetensors"));
    return text.starts_with(input.string() + ": ") ? text.substr(input.string().size() + 2) : text;
  };
  const auto good_images = entry("images", {2, 1, 8, 8}, images);
  const auto good_t = entry("timesteps", {2}, t);

  CHECK(message({good_t}) == "no tensor \"images\"");
  CHECK(message({good_images}) == "no tensor \"timesteps\"");
  CHECK(message({entry("images", {2, 64}, images), good_t}) ==
        "tensor 'images' is F32 [2,64], expected F32 [N,1,H,W]");
  CHECK(message({entry("images", {2, 4, 4, 4}, images), good_t}) ==
        "tensor 'images' is F32 [2,4,4,4], expected F32 [N,1,H,W]");
  const std::vector<int32_t> integers(2 * 64);
  CHECK(message({entry("images", {2, 1, 8, 8}, integers), good_t}) ==
        "tensor 'images' is I32 [2,1,8,8], expected F32 [N,1,H,W]");
  CHECK(message({entry("images", {2, 1, 2, 32}, images), good_t}) ==
        "images of 32x2, but the network's 2 levels need sides that are multiples of 4");
  const std::vector<float> none;
  CHECK(message({entry("images", {2, 1, 0, 8}, none), good_t}) ==
        "images of 8x0, but the network's 2 levels need sides that are multiples of 4");
  CHECK(message({good_images, entry("timesteps", {2, 1}, t)}) ==
        "tensor 'timesteps' is I32 [2,1], expected I32 or I64 [2]");
  const std::vector<float> real{1, 2};
  CHECK(message({good_images, entry("timesteps", {2}, real)}) ==
        "tensor 'timesteps' is F32 [2], expected I32 or I64 [2]");
  const std::vector<int32_t> three{1, 2, 3};
  CHECK(message({good_images, entry("timesteps", {3}, three)}) ==
        "tensor 'timesteps' is I32 [3], expected I32 or I64 [2]");
  const std::vector<int32_t> late{5, 1000};
  CHECK(message({good_images, entry("timesteps", {2}, late)}) ==
        "timesteps[1] is 1000, expected 0 to 999");
  const std::vector<int64_t> wrapping{int64_t{1} << 32, -1};  // 0 in 32 bits
  CHECK(message({good_images, entry("timesteps", {2}, wrapping)}) ==
        "timesteps[0] is 4294967296, expected 0 to 999");
  for (const auto& [value, text] : {std::pair{std::nanf(""), "nan"}, {-INFINITY, "-inf"}}) {
    std::vector<float> bad = images;
    bad[64 + 3 * 8 + 5] = value;
    CHECK(message({entry("images", {2, 1, 8, 8}, bad), good_t}) ==
          std::string("images[1,0,3,5] is ") + text + ", expected a finite number");
  }
  CHECK(message({good_images, good_t}, {"--timestep", "0"}) ==
        "--timestep is 0, but " + input.string() + ": timesteps[1] is 999");
}

TEST_CASE("denoise: what is wrong is one line on stderr, and the status says whose fault it is",
          "[denoise]") {
  const TempDir dir;
  Network network(kSmall, dir / "w");
  fs::copy_file(dir / "w", dir / "w.safetensors");
  std::string no_groups = read_text(dir / "w");
  no_groups.replace(no_groups.find("\"groups\":\"4\"") + 10, 1, "0");
  write_text(dir / "groups", no_groups);
  // The first convolution overflows.
  for (Parameter& p : network.model.parameters().list())
    if (p.name == "init_conv.weight")
      p.var.value.data<float>()[0] = std::numeric_limits<float>::max();
  save_weights(network.stream, network.model.parameters(), kSmall, dir / "huge");
  std::vector<SafeTensorEntry> tensors_of_w;
  const SafeTensors w = SafeTensors::read(dir / "w");
  for (const std::string& name : w.names())
    tensors_of_w.push_back({name, DType::f32, w.at(name).shape, w.at(name).data});
  write_safetensors(dir / "bare", tensors_of_w);
  write_png(dir / "in.png", picture(8, 8, 1));
  write_png(dir / "odd.png", picture(8, 6, 1));
  write_text(dir / "bad.png", "no picture");
  write_text(dir / "old.png", "old");
  fs::create_directory(dir / "empty");
  const std::vector<float> image = numbers(64);
  const std::vector<int32_t> t{1};
  write_safetensors(dir / "in.safetensors",
                    {entry("images", {1, 1, 8, 8}, image), entry("timesteps", {1}, t)});

  const std::string in = "--input in.png ", good = "--weights w " + in + "--output out.png ";
  const std::string tensors = "--weights w --input in.safetensors ";
  struct Case {
    std::string arguments;
    int status;
    std::string message;
  };
  std::vector<Case> cases = {
      {"", 2, "--weights is required (see --help)"},
      {"--weights w", 2, "--input is required (see --help)"},
      {"--weights w " + in, 2, "--output is required (see --help)"},
      {"--wieghts w " + in, 2, "'--wieghts' is not expected here (see --help)"},
      {"--bogus", 2, "'--bogus' is not expected here (see --help)"},
      {"-w w --weights w", 2, "'-w' is not expected here (see --help)"},
      {"--weights", 2, "--weights needs a value (see --help)"},
      {"--input in.png --output out.png --timestep 1 --weights=", 2,
       "--weights needs a value (see --help)"},
      {"--weights '' --input in.png --output out.png --timestep 1", 2,
       "--weights is empty, expected FILE"},
      {"--weights w --input '' --output out.png --timestep 1", 2,
       "--input is empty, expected FILE|DIR"},
      {"--weights w --input in.png --output '' --timestep 1", 2,
       "--output is empty, expected FILE|DIR"},
      {good + "--weights w --timestep 1", 2, "--weights is given 2 times (see --help)"},
      {good + "--timestep 1 --timestep 1", 2, "--timestep is given 2 times (see --help)"},
      {good + "--timestep", 2, "--timestep needs a value (see --help)"},
      {good + "--timestep 1.5", 2, "--timestep: Value 1.5 not in range 0 to 999 (see --help)"},
      {good + "--timestep 1 --force=maybe", 2, "Could not convert: --force = maybe (see --help)"},
      {good + "--timestep 1 --image-size 0", 2,
       "--image-size: Value 0 not in range 1 to 4096 (see --help)"},
      {good + "--timestep 1 --groups 0", 2,
       "--groups: Value 0 not in range 1 to 4096 (see --help)"},
      {good + "--timestep 1 --threads 1025", 2,
       "--threads: Value 1025 not in range 0 to 1024 (see --help)"},
      {good + "--timestep 1 more", 2, "'more' is not expected here (see --help)"},
      {good + "--timestep 1000", 2, "--timestep: Value 1000 not in range 0 to 999 (see --help)"},
      {good + "--timestep -1", 2, "--timestep: Value -1 not in range 0 to 999 (see --help)"},
      {good + "--timestep 0x10", 2, "--timestep: Value 0x10 not in range 0 to 999 (see --help)"},
      {good + "--timestep ten", 2, "--timestep: Value ten not in range 0 to 999 (see --help)"},
      {good, 2, "--timestep is required: how noisy in.png is, 0 to 999"},
      {good + "--timestep 1 --seed 3", 2, "--seed requires --add-noise (see --help)"},
      {good + "--timestep 1 --add-noise --seed -1", 2,
       "--seed: Value -1 not in range 0 to 9223372036854775807 (see --help)"},
      {good + "--timestep 1 --add-noise --seed 99999999999999999999", 2,
       "--seed: Value 99999999999999999999 not in range 0 to 9223372036854775807 (see --help)"},
      {good + "--timestep 1 --noise-level 1", 2, "--noise-level requires --add-noise (see --help)"},
      {good + "--timestep 1 --add-noise --noise-level nan", 2,
       "--noise-level is nan, expected a number"},
      {good + "--timestep 1 --image-size 10", 2,
       "--image-size is 10, but the network's 2 levels need a multiple of 4"},
      {good + "--timestep 1 --groups 8", 2, "--groups is 8, but the metadata of w says 4"},
      {good + "--timestep 1 --activation gelu-tanh", 2,
       "--activation is gelu-tanh, but the metadata of w says gelu"},
      {good + "--timestep 1 --activation swish", 2,
       "--activation: swish not in {gelu,gelu-tanh,relu} (see --help)"},
      {good + "--timestep 1 --norm layer", 2, "--norm is layer, but the metadata of w says group"},
      {good + "--timestep 1 --norm batch", 2, "--norm is batch, but the metadata of w says group"},
      {good + "--timestep 1 --down max", 2, "--down is max, but the metadata of w says rearrange"},
      {good + "--timestep 1 --up transposed", 2,
       "--up is transposed, but the metadata of w says nearest"},
      {good + "--timestep 1 --no-skips", 2, "--no-skips is true, but the metadata of w says false"},
      {good + "--timestep 1 --no-time-gelu", 2,
       "--no-time-gelu is true, but the metadata of w says false"},
      {good + "--timestep 1 --base 16", 2, "--base is 16, but the metadata of w says 8"},
      {good + "--timestep 1 --levels 3", 2, "--levels is 3, but the metadata of w says 2"},
      {good + "--timestep 1 --channels 3", 2, "--channels is 3, but the metadata of w says 1"},
      {good + "--timestep 1 --time-dim 4", 2, "--time-dim is 4, but the metadata of w says 8"},
      {"--weights bare --timestep 1 --groups 4 --down conv --output out.png " + in, 2,
       "--down is conv, but the tensors of bare say rearrange"},
      {good + "--timestep 1 --norm none", 2,
       "--norm: none not in {group,batch,layer,instance} (see --help)"},
      {good + "--timestep 1 --down pool", 2,
       "--down: pool not in {rearrange,conv,max,avg} (see --help)"},
      {good + "--timestep 1 --no-skips=maybe", 2,
       "Could not convert: --no-skips = maybe (see --help)"},
      {good + "--timestep 1 --device gpu", 2,
       "--device: gpu not in {auto,cpu,cuda,simt} (see --help)"},
      {good + "--timestep 1 --precision f16", 2,
       "--precision: f16 not in {auto,f32,tf32,bf16} (see --help)"},
      {good + "--timestep 1 --device cpu --precision tf32", 2,
       "--precision tf32 is not available on device cpu (f32 and bf16 are)"},
      {tensors + "--output out.safetensors --add-noise", 2,
       "--add-noise is for PNG and JPEG images, and --input is in.safetensors"},
      {tensors + "--output out.safetensors --image-size 8", 2,
       "--image-size is for PNG and JPEG images, and --input is in.safetensors"},
      {tensors + "--output out.png", 2,
       "--output is out.png, expected a file name that ends in .safetensors"},
      {"--timestep 1 --weights w --output out.jpg " + in, 2,
       "--output is out.jpg, expected a file name that ends in .png"},
      {"--timestep 1 --weights w --input empty --output old.png", 2,
       "--output old.png is not a folder, and --input empty is one"},
      {"--timestep 1 --weights w --input empty --output out", 1,
       "empty: no .png, .jpg or .jpeg file in it"},
      {"--timestep 1 --weights w --output no/out.png " + in, 1,
       "cannot write no/out.png: no is not a folder"},
      {"--timestep 1 --weights w --output old.png " + in, 1,
       "old.png exists already (--force replaces it)"},
      {"--timestep 1 --weights w --input no.png --output out.png", 1,
       "cannot read no.png: no such file or folder"},
      {"--timestep 1 --weights no --output out.png " + in, 1,
       "cannot read no: No such file or directory"},
      {"--timestep 1 --weights in.safetensors --output out.png " + in, 1,
       "in.safetensors: tensor 'init_conv.weight' is missing: not weights of this U-Net"},
      {"--timestep 1 --weights groups --output out.png " + in, 1,
       "groups: metadata 'groups' is 0, expected a divisor of the network's width 8"},
      {"--timestep 1 --weights bad.png --output out.png " + in, 1,
       "bad.png: not a safetensors file: header of 8463498904239894382 bytes, at most 100000000 "
       "are allowed"},
      {"--timestep 1 --weights empty --output out.png " + in, 1,
       "cannot read empty: Is a directory"},
      {"--timestep 1 --weights w --input bad.png --output out.png", 1,
       "bad.png: neither a PNG nor a JPEG image"},
      {"--timestep 1 --weights w --input odd.png --output out.png", 1,
       "odd.png: 8x6 pixels, but the network's 2 levels need sides that are multiples of 4 "
       "(--image-size S stretches it to SxS)"},
      {"--timestep 1 --weights huge --output out.png " + in, 1,
       "in.png: the network of huge gives NaN or infinity for it: its weights are broken"},
      {"--timestep 1 --weights w.safetensors --output w.safetensors --force --input in.safetensors",
       2, "--output w.safetensors is the file of --weights"},
  };
  if (!has_gpu())
    cases.push_back({good + "--timestep 1 --device cuda", 1,
                     message_of<InputError>([] { Device::open(DeviceType::cuda); })});
  for (const Case& c : cases) {
    CAPTURE(c.arguments);
    Arguments words;
    std::istringstream stream(c.arguments);
    for (std::string word; stream >> word;) words.push_back(word == "''" ? "" : word);
    const Finished run =
        run_program("denoise", words, "cd " + shell_word(dir.path().string()) + " &&");
    CHECK(run.err == "denoise: error: " + c.message + "\n");
    CHECK(run.out == "");
    CHECK(run.status == c.status);
    CHECK_FALSE(fs::exists(dir / "out.png"));
    CHECK_FALSE(fs::exists(dir / "out.safetensors"));
  }
  CHECK(read_text(dir / "old.png") == "old");
}

TEST_CASE("denoise: help and version", "[denoise]") {
  const Finished help = run_program("denoise", {"--help"});
  CHECK(help.status == 0);
  CHECK(help.err == "");
  for (const char* text :
       {"--weights",   "--input",        "--output",   "--force",   "--timestep",   "--image-size",
        "--add-noise", "--noise-level",  "--seed",     "--groups",  "--activation", "--base",
        "--levels",    "--channels",     "--time-dim", "--down",    "--up",         "--norm",
        "--no-skips",  "--no-time-gelu", "--device",   "--threads", "--version",    "\nFiles:",
        "\nImages:",   "\nNetwork",      "\nMachine:"})
    CHECK(help.out.find(text) != std::string::npos);
  const Finished version = run_program("denoise", {"--version"});
  CHECK(version.status == 0);
  CHECK(version.out.starts_with("tessera "));
}

TEST_CASE("denoise: a value that is not finite is told by its place", "[denoise]") {
  const TempDir dir;
  Network network(kSmall, dir / "w");
  std::vector<float> images = numbers(2 * 8 * 12);
  images[96 + 3 * 12 + 5] = INFINITY;
  const std::vector<int32_t> t{1, 2};
  write_safetensors(dir / "in.safetensors",
                    {entry("images", {2, 1, 8, 12}, images), entry("timesteps", {2}, t)});
  CHECK_THAT(message_of<InputError>([&] {
               denoise(files(dir / "w", dir / "in.safetensors", dir / "out.safetensors"));
             }),
             Catch::Contains("images[1,0,3,5] is inf"));
}
