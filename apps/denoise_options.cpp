#include "apps/denoise_options.h"

#include "apps/usage.h"
#include "layers/unet_config.h"

namespace tessera {
namespace {

void add_file_options(CLI::App& app, DenoiseOptions& options) {
  const char* group = "Files";
  app.add_option("--weights", options.weights,
                 "model.safetensors of train, or PyTorch's weights under the same names")
      ->required()
      ->type_name("FILE")
      ->group(group);
  app.add_option("--input", options.input,
                 "a PNG or JPEG image, a folder of them, or a .safetensors file with images "
                 "[N,C,H,W] (F32) and timesteps [N] (I32 or I64)")
      ->required()
      ->type_name("FILE|DIR")
      ->group(group);
  app.add_option("--output", options.output,
                 "a .png file; a folder, made if need be, of PNGs with the inputs' names; or a "
                 ".safetensors file with output [N,C,H,W] (F32)")
      ->required()
      ->type_name("FILE|DIR")
      ->group(group);
  app.add_flag("--force", options.force, "replace outputs that exist")->group(group);
}

void add_image_options(CLI::App& app, DenoiseOptions& options) {
  const char* group = "Images";
  app.add_option("--timestep", options.timestep,
                 "how noisy the images are: 0 (clean) to 999; required for images")
      ->transform(whole_number(0, 999))
      ->type_name("T")
      ->group(group);
  app.add_option("--image-size", options.image_size,
                 "stretch to SxS first; default: the size stays, and its sides must be multiples "
                 "of 2^levels")
      ->transform(whole_number(1, 4096))
      ->type_name("S")
      ->group(group);
  CLI::Option* add_noise =
      app.add_flag("--add-noise", options.add_noise,
                   "the inputs are clean: add the noise of the timestep, and print how near noisy "
                   "and denoised images are to the clean ones (PSNR)")
          ->group(group);
  app.add_option("--noise-level", options.noise_level,
                 "noise has standard deviation timestep/1000 * this (default 0.5)")
      ->check(CLI::Range(0.0, 100.0))
      ->needs(add_noise)
      ->type_name("L")
      ->group(group);
  app.add_option("--seed", options.seed, "of the noise (default 0)")
      ->transform(whole_number(0, INT64_MAX))
      ->needs(add_noise)
      ->type_name("N")
      ->group(group);
}

void add_network_options(CLI::App& app, DenoiseOptions& options) {
  const std::map<std::string, const char*> help{
      {"base", "channels at full resolution"},
      {"levels", "down blocks"},
      {"channels", "of an image"},
      {"time-dim", "width of the timestep embedding"},
      {"groups", "of every norm where --norm is group (default 8)"},
      {"activation", "gelu (default), gelu-tanh or relu"},
      {"down", "rearrange (default), conv, max or avg"},
      {"up", "nearest (default) or transposed"},
      {"norm", "group (default), batch, layer or instance"},
      {"no-skips", "up blocks do not see the way down"},
      {"no-time-gelu", "no GELU before the projections of the timestep"}};
  for (const UNetOption& option : unet_options()) {
    const auto set = [&options, &option](const std::string& text) {
      options.network[option.name] = text;
    };
    const std::string name = "--" + option.name;
    CLI::Option* added;
    if (option.is_flag()) {
      added = app.add_flag_callback(
          name, [set] { set("true"); }, help.at(option.name));
    } else if (option.values.empty()) {
      const auto set_number = [set](int64_t value) { set(std::to_string(value)); };
      added = app.add_option_function<int64_t>(name, set_number, help.at(option.name))
                  ->transform(whole_number(1, 4096))
                  ->type_name("N");
    } else {
      added = app.add_option_function<std::string>(name, set, help.at(option.name))
                  ->check(CLI::IsMember(option.values))
                  ->type_name("NAME");
    }
    added->group("Network (what the weights do not say)");
  }
}

void add_machine_options(CLI::App& app, DenoiseOptions& options) {
  const char* group = "Machine";
  app.add_option("--device", options.device, "auto (default), cpu, cuda or simt")
      ->check(CLI::IsMember({"auto", "cpu", "cuda", "simt"}))
      ->type_name("NAME")
      ->group(group);
  app.add_option(
         "--precision", options.precision,
         "auto (default: bf16 on GPUs from compute capability 8.0 on, else f32), f32, bf16, "
         "or, on GPUs, tf32")
      ->check(CLI::IsMember({"auto", "f32", "tf32", "bf16"}))
      ->type_name("NAME")
      ->group(group);
  app.add_option("--threads", options.threads,
                 "CPU threads; 0 (default): as many as the machine has")
      ->transform(whole_number(0, 1024))
      ->type_name("N")
      ->group(group);
}

}  // namespace

std::optional<DenoiseOptions> parse_denoise_options(int argc, const char* const* argv,
                                                    std::ostream& out) {
  DenoiseOptions options;
  CLI::App app("Denoises images with the weights of a trained U-Net.", "denoise");
  app.get_formatter()->column_width(26);
  app.get_formatter()->label("REQUIRED", "(required)");
  app.set_help_flag("--help,-h", "print this, and be done")->group("Help");
  app.set_version_flag("--version", "tessera " TESSERA_VERSION, "print the version, and be done")
      ->group("Help");
  add_file_options(app, options);
  add_image_options(app, options);
  add_network_options(app, options);
  add_machine_options(app, options);
  app.footer(
      "\nStatus 2: wrong options. Status 1: any other error. Nothing is written before all inputs "
      "were read.");
  if (const auto answer = parse(app, argc, argv)) {
    out << *answer;
    return std::nullopt;
  }
  for (const char* name : {"--weights", "--input", "--output"})
    if (app.get_option(name)->as<std::string>().empty())
      throw UsageError(concat(name, " is empty, expected ", app.get_option(name)->get_type_name()));
  return options;
}

}  // namespace tessera
