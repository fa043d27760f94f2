// Everything that can go wrong because of a flag or a file is tried before the run's directory is
// made.
#include "apps/train_run.h"

#include <fmt/core.h>

#include <algorithm>
#include <optional>

#include "apps/device_images.h"
#include "apps/train_loop.h"
#include "kernels/conv_tiles.h"
#include "kernels/cpu/onednn.h"
#include "layers/weights.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

// Sets the parameters from a file that must belong to the network of the options.
void load_start_weights(Stream& stream, const TrainOptions& options, UNet& model) {
  const SafeTensors file = SafeTensors::read(options.weights);
  const UNetConfig wanted = options.network(), found = config_of(file, wanted);
  for (const UNetOption& option : unet_options())
    if (const std::string asked = option.get(wanted), has = option.get(found);
        asked != has && option.matters(wanted))
      throw InputError(concat(file.origin(), " holds a network with --", option.name, " ", has,
                              ", but --", option.name, " is ", asked));
  load_weights(stream, model.parameters(), file);
}

// Where the run starts: its checkpoint, the given weights, or random numbers.
CheckpointState load_start(Stream& stream, const TrainOptions& options, const RunDir* resumed,
                           int64_t images, Trainer& trainer) {
  CheckpointState state{0, 0, images, options.settings()};
  if (resumed && fs::exists(resumed->checkpoint())) {
    state = load_checkpoint(stream, trainer.model().parameters(), resumed->checkpoint(), images,
                            options.settings());
    trainer.set_steps_done(state.step);
  } else if (!options.weights.empty()) {
    load_start_weights(stream, options, trainer.model());
  }
  return state;
}

std::string device_text(const Device& device) {
  const std::string type = name_of(device.type());
  if (device.type() == DeviceType::cuda) return concat(type, ", ", device.info().name);
  const std::string threads = concat(device.threads(), " threads");
  return device.type() == DeviceType::cpu ? concat(type, ", ", threads)
                                          : concat(type, ", ", device.info().name, ", ", threads);
}

// What bf16 costs on a CPU without it.
std::string products_text(const TrainOptions& options, const Device& device) {
  const bool widened = options.precision == "bf16" && device.type() == DeviceType::cpu &&
                       cpu::bf16_products() == cpu::Bf16Products::Widened;
  return widened ? "  products in f32: this CPU has no instructions for those of bf16\n" : "";
}

// The file that chooses tiles, where there is one.
std::string tiles_text(const Device& device) {
  if (device.type() == DeviceType::cpu || ConvTiles::in_force().file().empty()) return "";
  return fmt::format("  tiles    {}\n", ConvTiles::in_force().file());
}

// ", --down max": the choices between networks that are not the default.
std::string variant_text(const UNetConfig& network) {
  std::string text;
  for (const UNetOption& option : unet_options()) {
    const std::string value = option.get(network);
    if (option.values.empty() || value == option.get({})) continue;
    text += concat(text.empty() ? ", --" : " --", option.name, option.is_flag() ? "" : " " + value);
  }
  return text;
}

void print_banner(const TrainOptions& options, const GivenOptions& given, const RunDir& dir,
                  const Device& device, const Dataset& data, const Schedule& schedule,
                  Trainer& trainer, std::ostream& out) {
  const bool chosen = given.contains("preset") || given.contains("resume");
  out << fmt::format("tessera {}: training a U-Net to remove noise\n", TESSERA_VERSION)
      << fmt::format("  preset   {}{}\n", options.preset,
                     chosen ? "" : concat(" (the default on ", options.device, "; see --help)"))
      << fmt::format("  data     {}\n", data.description())
      << fmt::format("  network  {} levels, base {}, {} parameters{}\n", options.levels,
                     options.base, trainer.model().parameters().count(),
                     variant_text(trainer.model().config()))
      << fmt::format("  device   {}, {}\n", device_text(device), options.precision)
      << products_text(options, device) << tiles_text(device)
      << fmt::format("  steps    {} to {} of {} images ({} an epoch), seed {}\n",
                     trainer.steps_done() + 1, schedule.total,
                     std::min(options.batch, data.train_size()), schedule.steps_per_epoch(),
                     options.seed)
      << fmt::format("  run      {}\n", dir.path().string()) << std::flush;
}

// Throws when the directory has no room for the files to come. An old file that is replaced stays
// until the new one is whole.
void expect_space(const RunDir& dir, const TrainOptions& options, const Parameters& parameters) {
  const uint64_t arena = uint64_t(parameters.values.numel()) * sizeof(float);
  const uint64_t model = uint64_t(parameters.count()) * sizeof(float);
  const bool checkpoints = options.checkpoint_every != 0 || fs::exists(dir.checkpoint());
  const uint64_t checkpoint = checkpoints ? 3 * arena : 0;
  const uint64_t most = model + checkpoint + std::max(model, checkpoint);
  uint64_t there = 0;
  if (fs::exists(dir.model())) there += fs::file_size(dir.model());
  if (fs::exists(dir.checkpoint())) there += fs::file_size(dir.checkpoint());
  dir.expect_space(most - std::min(most, there));
}

// The options of the run that --resume names, whose directory `dir` becomes.
TrainOptions reopen(const std::string& path, const GivenOptions& given,
                    std::optional<RunDir>& dir) {
  dir.emplace(RunDir::reopen(path));
  const GivenOptions saved = read_config(dir->config());
  if (make_options(saved).checkpoint_every == 0 && !fs::exists(dir->checkpoint()))
    throw InputError(
        concat("--resume ", path, " has no checkpoint: it ran with --checkpoint-every 0"));
  // A run that was stopped before its first checkpoint starts over; a trained model stays.
  if (fs::exists(dir->model()) && !fs::exists(dir->checkpoint()))
    throw InputError(concat("--resume ", path,
                            " has model.safetensors, but no checkpoint.safetensors to go on from"));
  return resumed_options(saved, given, dir->path());
}

}  // namespace

int run_train(const CommandLine& line, std::ostream& out, bool live) {
  const GivenOptions given =
      line.config.empty() ? line.given : layered(read_config(line.config), line.given);
  const auto resume = given.find("resume");
  if (TrainOptions checked; resume != given.end())
    train_option("resume").set(checked, resume->second.text, resume->second.source);
  std::optional<RunDir> dir;
  TrainOptions options =
      resume == given.end() ? make_options(given) : reopen(resume->second.text, given, dir);

  const auto device = Device::open(device_type_of(options.device), int(options.threads));
  options.threads = device->threads();
  options.precision =
      resolve_precision(options.precision, options.device, device->info().capability);
  Stream stream(device);
  if (device->type() != DeviceType::cpu)
    ConvTiles::in_force();  // what is wrong with it is said now
  const Dataset data = Dataset::open(options.data, int(options.image_size), int(options.channels));
  if (data.train_size() < 1)
    throw InputError(concat("--data ", options.data, " has no images to train on"));
  Trainer trainer(stream, options,
                  images_on_device(stream, data, options.image_size, options.channels));
  const CheckpointState state =
      load_start(stream, options, dir ? &*dir : nullptr, data.train_size(), trainer);
  const int64_t total = total_steps(options, data.train_size());
  if (state.step > total)
    throw UsageError(concat("--resume ", options.resume, " is at step ", state.step,
                            " already, beyond the ", total, " that are asked for"));
  const std::string config = config_text(options);
  if (!dir) {
    dir.emplace(RunDir::create(options.out));
    expect_space(*dir, options, trainer.model().parameters());
    dir->write_config(config);
  }

  TrainLoop loop(options, *dir, stream, data, trainer, state, out, live);
  if (loop.finished()) {
    out << fmt::format("{} is at step {} of {} already: nothing to do\n", dir->path().string(),
                       state.step, loop.schedule().total);
    return 0;
  }
  expect_space(*dir, options, trainer.model().parameters());
  dir->write_config(config);  // a resumed run may have other steps, threads, ...
  print_banner(options, given, *dir, *device, data, loop.schedule(), trainer, out);
  return loop.run();
}

}  // namespace tessera
