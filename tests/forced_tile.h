// A tile for a 3x3 convolution and its data's gradient, whatever the rule says of so small a shape.
#pragma once

#include <catch2/catch.hpp>
#include <optional>

#include "core/shape.h"
#include "kernels/conv_tiles.h"

namespace tessera {

// x [N,H,W,C] -> K channels, on the host model. The rule stays for one of them, if it does not fit.
inline void force_tile(Stream& stream, std::optional<ConvTile> tile, const Shape& x, int64_t K) {
  if (!tile || stream.device().type() != DeviceType::simt) return;
  const int64_t C = x[3];
  bool fits = false;
  for (const ConvShape& shape :
       {ConvShape{false, x[0], x[1], x[2], K, C}, {true, x[0], x[1], x[2], C, K}})
    if (misfit_of(*tile, shape).empty()) {
      stream.state<ConvTiles>().set(stream.device().info().capability, shape, *tile);
      fits = true;
    }
  REQUIRE(fits);
}

// Channels that a tile does not divide, if it can do with such.
inline int64_t odd_channels(const ConvTileSize& size) {
  return size.channels > 64 ? size.channels : size.channels + 8;
}

}  // namespace tessera
