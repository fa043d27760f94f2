// How GroupNorm cuts images into what blocks hold in shared memory
// (kernels/cuda/group_norm_image.h): also the answer to whether it can.
#pragma once

#include <algorithm>
#include <numeric>
#include <optional>

#include "core/runtime.h"
#include "kernels/kernels.h"

namespace tessera {

// A block has some channels, whole groups of them, of all of an image's pixels, or of a part of
// these; the parts of an image are a cluster.
struct ImageCut {
  static constexpr int kMostParts = 8;  // what GPUs with clusters take ("portable")
  static constexpr int kMostThreads = 512;
  static constexpr int kMostTensors = 3;  // on the way back through an activation

  int threads, cols, rows;  // of a block; packs of 8 channels and pixels that it has at a time
  int parts, pixels;        // of an image, and pixels of each
  int slots;                // pixels of a thread, at most
  size_t shared_bytes;      // of a block

  // Blocks that share a pixel of C channels.
  int64_t units(int64_t C) const { return ceil_div(C / 8, cols); }
  // Floats behind the sums' scratch: two of each channel and group, in packs.
  static int floats(int64_t C, int64_t groups) { return int((2 * (C + groups) + 3) / 4 * 4); }

  // x [N,H,W,C] in bf16, of which `tensors` are kept, or nullopt: not on this GPU, not in packs, or
  // too large. All pixels in one block and 64 bytes of each, if that fits; else at least 32 bytes,
  // what memory is read by, in as few parts as fit or keep half of the GPU busy.
  static std::optional<ImageCut> of(const DeviceInfo& info, const Shape& x, DType dtype,
                                    int64_t groups, int tensors) {
    if (info.capability < 90 || dtype != DType::bf16 || x.numel() == 0 || x[3] % 8 != 0) return {};
    const int64_t N = x[0], P = x[1] * x[2], C = x[3], unit = std::lcm(C / groups, int64_t{8});
    for (const auto& [least, most_parts] : {std::pair(32, 1), std::pair(16, kMostParts)}) {
      const int64_t channels = std::min(C, ceil_div(least, unit) * unit),
                    units = ceil_div(C, channels);
      for (int64_t parts = 1; parts <= most_parts; parts *= 2) {
        const int64_t blocks = N * units * parts;
        if (blocks * 2 <= info.multiprocessors && parts < std::min<int64_t>(kMostParts, P))
          continue;
        // Two blocks on a multiprocessor, if there are as many; one hides more by more threads.
        const bool alone = blocks <= info.multiprocessors &&
                           ceil_div(P, parts) * (channels / 8) >= int64_t{2} * kMostThreads;
        for (const int threads : {kMostThreads / (alone ? 1 : 2), kMostThreads})
          if (const auto cut = fitting(info, P, C, groups, channels / 8, parts, threads, tensors))
            return cut;
      }
    }
    return {};
  }

 private:
  static std::optional<ImageCut> fitting(const DeviceInfo& info, int64_t P, int64_t C,
                                         int64_t groups, int64_t packs, int64_t parts, int threads,
                                         int tensors) {
    if (packs > threads) return {};
    const int64_t rows = threads / packs, slots = ceil_div(ceil_div(P, parts), rows),
                  pixels = slots * rows;
    const int64_t bytes = 4 * (8 * threads + floats(C, groups)) + 16 * tensors * slots * threads;
    // Two blocks share what a multiprocessor has, 1 KB of it each unseen; else one has more
    // threads.
    const int64_t room = int64_t(info.shared_per_block);
    if (bytes > (threads < kMostThreads ? (room - 1024) / 2 : room)) return {};
    return ImageCut{threads,     int(packs), int(rows),    int(ceil_div(P, pixels)),
                    int(pixels), int(slots), size_t(bytes)};
  }
};

}  // namespace tessera
