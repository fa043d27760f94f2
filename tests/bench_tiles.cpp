// The tiles of the 3x3 convolutions (kernels/conv_tiles.h): which are in force, and which are the
// fastest on the GPU at hand.
#include <fmt/format.h>

#include <algorithm>
#include <iostream>

#include "core/file.h"
#include "kernels/cuda/conv_halo_launch.h"
#include "layers/unet.h"
#include "tests/bench.h"

namespace tessera {
namespace {

// The 3x3 convolutions of the preset lesson at both batch sizes, or tiny ones. An up block's first
// one has tiles of its own (upcat_conv2d.cu).
std::vector<ConvShape> network_convs(bool tiny) {
  if (tiny) return {{false, 1, 9, 9, 128, 8}, {true, 1, 9, 9, 128, 8}, {false, 2, 8, 8, 64, 8}};
  std::vector<ConvShape> convs;
  for (const Stage& s : stages())
    if (s.model.starts_with("lesson"))
      for (const bool data_gradient : {false, true})
        convs.push_back({data_gradient, s.N, s.side, s.side, s.width, s.width});
  return convs;
}

// What a block takes, and parts of the name of its kernel.
struct BlockNeeds {
  int threads;
  size_t shared;
  std::vector<std::string> kernel;
};
BlockNeeds needs_of(ConvTile tile, const DeviceInfo& info, const ConvShape& s) {
  BlockNeeds needs{};
  simt::conv::with_halo_tile(tile, [&]<class Tile>(Tile) {
    using namespace simt::conv;
    const int64_t blocks = blocks_of(tile, s);
    needs = {Tile::kThreads,
             halo_shared<Tile, HaloSource>(info, blocks),
             {fmt::format("conv_halo_kernel<HaloTile<{}, {}, {}, {}, {}, 1, {}>", Tile::TH,
                          Tile::TW, Tile::BN, Tile::WM, Tile::WN, Tile::TN),
              "HaloSource",
              fmt::format("{}, {}>", s.data_gradient ? "HaloImage" : "HaloMoments",
                          halo_blocks<Tile, HaloSource>(info, blocks))}};
  });
  return needs;
}

void print_card(const DeviceInfo& info, const KernelResources& resources) {
  const ConvTiles& tiles = ConvTiles::in_force();
  const int architecture = info.capability;
  const MultiprocessorLimits* const limits = limits_of(architecture);
  for (const ConvShape& s : network_convs(false)) {
    const ConvTile tile = tiles.choose(architecture, s);
    const BlockNeeds needs = needs_of(tile, info, s);
    const int registers = resources.find(architecture, needs.kernel).registers;
    std::string waves = "-";
    if (limits) {
      const int resident = resident_blocks(*limits, needs.threads, needs.shared, registers);
      waves = fmt::format("{}{:.2f}", registers ? "" : ">= ",
                          double(blocks_of(tile, s)) / (resident * info.multiprocessors));
    }
    std::cout << fmt::format("| {} | {} | {} | {} | {} | {} | {} | {} | {} |\n", architecture,
                             info.name, text_of(s), size_of(tile).name,
                             tiles.has(architecture, s) ? "table" : "rule", blocks_of(tile, s),
                             waves, registers ? std::to_string(registers) : "-", needs.shared);
  }
}

// Makes the tensors of a convolution; the result computes it as the network does.
std::function<void()> prepare(Stream& stream, const ConvShape& s) {
  const int64_t C = s.data_gradient ? s.columns : s.depth;
  const int64_t K = s.data_gradient ? s.depth : s.columns;
  const Tensor w = random_tensor(stream, {K, 3, 3, C}, DType::bf16),
               b = random_tensor(stream, {K}, DType::f32);
  Tensor x = random_tensor(stream, {s.N, s.H, s.W, C}, DType::bf16),
         y = random_tensor(stream, {s.N, s.H, s.W, K}, DType::bf16);
  if (s.data_gradient) {
    const Tensor turned = random_tensor(stream, {C, 3, 3, K}, DType::bf16);
    return [=, &stream] { conv2d_bwd_data(stream, {1, 1, 1}, y, w, {x}, {{}, turned}); };
  }
  const int groups = int(UNetConfig{}.groups);
  MomentsOut moments{{groups}, Tensor::empty(stream, {s.N, groups, 2})};
  return [=, &stream]() mutable { conv2d_fwd(stream, {1, 1, 1}, x, w, b, y, &moments); };
}

struct Timed {
  ConvTile tile;
  double seconds;
};

// Every tile that fits, the fastest first.
std::vector<Timed> time_tiles(Stream& stream, Timer& timer, double budget, const ConvShape& shape) {
  const int architecture = stream.device().info().capability;
  std::vector<Timed> times;
  const auto call = prepare(stream, shape);
  for (const ConvTileSize& size : kConvTiles) {
    if (!misfit_of(size.tile, shape).empty()) continue;
    stream.state<ConvTiles>().set(architecture, shape, size.tile);
    times.push_back({size.tile, median_seconds(timer, budget, call)});
  }
  std::ranges::stable_sort(times, {}, &Timed::seconds);
  return times;
}

}  // namespace

void print_tiles(const std::string& resources_file) {
  const KernelResources resources(resources_file);
  const std::string& file = ConvTiles::in_force().file();
  std::cout << "3x3 convolutions in bf16 of the preset lesson, batch 32 and 128. Table: "
            << (file.empty() ? "none" : file) << "\n\n"
            << "| arch | card | N H W columns depth | tile | by | blocks | waves | registers | "
               "shared bytes |\n"
               "| --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: |\n";
  if (has_gpu()) return print_card(Device::open(DeviceType::cuda)->info(), resources);
  for (const int architecture : {80, 89, 90})
    for (const Card& card : kCards)
      if (card.architecture == architecture)
        print_card({card.name, architecture, card.multiprocessors}, resources);
}

int tune_tiles(DeviceType type, double budget, bool tiny, const std::string& file) {
  if (type == DeviceType::cpu || (type == DeviceType::cuda && !has_gpu())) {
    std::cerr << "bench: no GPU here: there is nothing to tune\n";
    return 3;
  }
  const auto device = Device::open(type);
  const DeviceInfo& info = device->info();
  if (info.capability < 80)
    throw InputError(concat(info.name, " has no tiles to choose from: they begin at 8.0"));
  std::string text = fmt::format(
      "# Tiles of 3x3 convolutions in bf16, by bench --tune on {}.\n"
      "# architecture fwd|dgrad N H W columns depth tile\n",
      info.name);
  for (const ConvShape& shape : network_convs(tiny)) {
    Stream stream(device);
    const auto timer = Timer::make(stream);
    const std::vector<Timed> times = time_tiles(stream, *timer, budget, shape);
    std::string line = fmt::format("{} {} {}  # us:", info.capability, text_of(shape),
                                   size_of(times.front().tile).name);
    for (const Timed& one : times)
      line += fmt::format(" {} {:.1f}", size_of(one.tile).name, one.seconds * 1e6);
    std::cout << line << std::endl;
    text += line + '\n';
    stream.synchronize();
    device->pool()->trim();
  }
  atomic_write(file, [&](FileWriter& out) { out.write(text.data(), text.size()); });
  std::cout << "written: " << file << '\n';
  return 0;
}

}  // namespace tessera
