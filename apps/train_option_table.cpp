// Every option of `train`: name, place, limits, help.
#include <algorithm>

#include "apps/train_options.h"

namespace tessera {
namespace {

using O = TrainOptions;

constexpr double kMaxSteps = 4e9;                   // the epoch's number stays within 32 bits
constexpr double kMaxSeed = 9223372036854774784.0;  // the last double below 2^63
constexpr auto kMayChange = TrainOption::Resume::MayChange;

// Collects options, group by group.
struct Table {
  std::vector<TrainOption> options;
  std::string group;

  void number(const char* name, TrainOption::Member member, double low, double high,
              const char* help, TrainOption::Resume resume = TrainOption::Resume::Fixed) {
    const char* value_name = std::holds_alternative<double O::*>(member) ? "X" : "N";
    options.push_back({name, group, value_name, help, member, low, high, {}, resume});
  }
  void text(const char* name, const char* value_name, std::string O::*member, const char* help) {
    options.push_back({name, group, value_name, help, member});
  }
  void flag(const char* name, bool O::*member, const char* help) {
    options.push_back({name, group, "", help, member});
  }
  void choice(const char* name, std::string O::*member, std::vector<std::string> choices,
              const char* help) {
    options.push_back({name, group, "NAME", help, member, 0, 0, std::move(choices)});
  }
  // A choice between networks.
  void variant(const char* name, std::string O::*member, const char* help) {
    choice(name, member, unet_option(name).values, help);
  }
};

void add_model_options(Table& table) {
  table.group = "Presets";
  table.choice("preset", &O::preset, {"lesson", "quick", "tiny"},
               "Where the other defaults come from. quick: 32x32 images, base 32, 600 steps. "
               "lesson: 64x64, base 64, 50 epochs. tiny: 16x16, base 8, 20 steps. Default: quick "
               "on a CPU, lesson on a GPU, tiny on simt");

  table.group = "Data";
  table.text("data", "auto|PATH", &O::data,
             "A folder of PNG and JPEG images, a folder of IDX files (MNIST, Fashion-MNIST), or "
             "one IDX file. auto (default): /usr/share/datasets/fashion-mnist");
  table.number("image-size", &O::image_size, 1, 4096,
               "Images are resized to NxN; a multiple of 2^levels (lesson 64, quick 32)");
  table.number("channels", &O::channels, 1, 3, "1: grey, 3: colour (default 1)");

  table.group = "Network";
  table.number("base", &O::base, 1, 4096, "Channels at full resolution (lesson 64, quick 32)");
  table.number("levels", &O::levels, 1, 8, "Down blocks; level l is base * 2^l wide (default 3)");
  table.number("groups", &O::groups, 1, 4096,
               "Groups of each norm where --norm is group (default 8), and nothing elsewhere");
  table.number("time-dim", &O::time_dim, 2, 4096,
               "Width of the sinusoidal timestep embedding (default 128)");
  table.variant("activation", &O::activation, "gelu (default), gelu-tanh or relu");
  table.variant("down", &O::down,
                "What halves the sides. rearrange (default): 2x2 pixels become channels, then 1x1 "
                "convolution. conv: 3x3 convolution of stride 2. max, avg: 2x2 pool, then 1x1 "
                "convolution");
  table.variant("up", &O::up,
                "What doubles them. nearest (default): pixels are repeated. transposed: 2x2 "
                "transposed convolution");
  table.variant("norm", &O::norm,
                "group (default), batch (BatchNorm: running statistics when it is used), layer "
                "(all channels are one group) or instance (each is one)");
  table.flag("no-skips", &O::no_skips, "Leave out what up blocks see of the way down");
  table.flag("no-time-gelu", &O::no_time_gelu,
             "Leave out the GELU before each block's projection of the timestep");
  table.text("weights", "FILE", &O::weights,
             "Start from these weights (safetensors), not from random numbers");
}

void add_training_options(Table& table) {
  table.group = "Training";
  table.number("batch", &O::batch, 1, 65536, "Images a step (default 32)");
  table.number("epochs", &O::epochs, 1, 1e6, "Passes over the images (lesson 50)", kMayChange);
  table.number("steps", &O::steps, 1, kMaxSteps,
               "Total number of steps, counted from step 0; wins over --epochs (quick 600)",
               kMayChange);
  table.number("lr", &O::lr, 1e-12, 10, "Learning rate of Adam (default 0.0001)");
  table.number("noise-level", &O::noise_level, 1e-6, 100,
               "Noise at timestep t has standard deviation t/1000 * X (default 0.5)");
  table.number("seed", &O::seed, 0, kMaxSeed,
               "Of weights, order, timesteps and noise: the same seed gives the same bits, by "
               "the same device and on a CPU by as many threads (default 0)");

  table.group = "Machine";
  table.choice("device", &O::device, {"auto", "cpu", "cuda", "simt"},
               "auto (default): a GPU if there is one, else the CPU. simt: the kernels for GPUs, "
               "executed on the CPU, slowly");
  table.choice("precision", &O::precision, {"auto", "f32", "tf32", "bf16"},
               "bf16: activations and products in bf16, sums and parameters in f32. tf32: "
               "everything in f32, products by tensor cores. auto (default): bf16 on GPUs from "
               "compute capability 8.0 on, else f32; on every CPU f32, whatever it multiplies");
  table.choice("fusion", &O::fusion, {"on", "off"},
               "on (default): each block of the network is one operation with passes of its own. "
               "off: it is made of plain operations, slower, and equal up to rounding");
  table.number("threads", &O::threads, 0, 1024,
               "CPU threads; 0 (default): as many as the machine has. The order of sums depends on "
               "them",
               kMayChange);
}

void add_run_options(Table& table) {
  table.group = "Run";
  table.text("out", "DIR", &O::out,
             "Directory of the run, made if missing; must not hold a run yet (default "
             "runs/<time>)");
  table.text("resume", "DIR", &O::resume,
             "Go on with the run in DIR, as it was configured. Only --steps, --epochs, --threads "
             "and --*-every may change");
  table.number("checkpoint-every", &O::checkpoint_every, 0, kMaxSteps,
               "Write checkpoint and model every N steps, at each epoch's end and at the end "
               "(default 500). 0: only the model at the end, and a checkpoint where there is one "
               "already or a signal stops the run",
               kMayChange);
  table.number("eval-every", &O::eval_every, 0, kMaxSteps,
               "Evaluate and draw the figure every N steps too, not only at each epoch's end and "
               "at the end (default). 0: never, not even at the end",
               kMayChange);
  table.number("log-every", &O::log_every, 1, kMaxSteps,
               "A line in metrics.jsonl every N steps and at the last (default 50)", kMayChange);
  table.choice("figure", &O::figure, {"matched", "lesson"},
               "matched (default): held-out images with the noise of their timestep. lesson: "
               "training images with twice that noise, as the course draws them");
}

}  // namespace

const std::vector<TrainOption>& train_option_table() {
  static const std::vector<TrainOption> options = [] {
    Table table;
    add_model_options(table);
    add_training_options(table);
    add_run_options(table);
    return std::move(table.options);
  }();
  return options;
}

const TrainOption& train_option(const std::string& name) {
  const auto found = std::ranges::find(train_option_table(), name, &TrainOption::name);
  ENSURE(found != train_option_table().end(), "no option '", name, "'");
  return *found;
}

}  // namespace tessera
