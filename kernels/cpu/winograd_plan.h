// How threads share a convolution by Winograd's tiles, and the matrices that they multiply.
#pragma once

#include "kernels/cpu/onednn.h"
#include "kernels/cpu/winograd_transforms.h"

namespace tessera::cpu::winograd {

// Bytes of transformed tiles, and of filters, that a thread computes at a time: caches hold them.
inline constexpr int64_t kTilesAtOnce = 2 << 20, kFiltersAtOnce = 3 << 20;

// The length of the fewest equal parts of `all` that are at most so long.
inline int64_t balanced(int64_t all, int64_t most) { return ceil_div(all, ceil_div(all, most)); }
inline int64_t tiles_along(int64_t outputs) { return ceil_div(outputs, kTile); }

struct Range {
  int64_t first, count;
  int64_t end() const { return first + count; }
};
inline Range common(const Range& a, const Range& b) {
  const int64_t first = std::max(a.first, b.first);
  return {first, std::max<int64_t>(0, std::min(a.end(), b.end()) - first)};
}
// Calls step(part) for the parts of a range, `each` long.
template <class Step>
void in_parts(const Range& all, int64_t each, Step step) {
  for (int64_t i = all.first; i < all.end(); i += each)
    step(Range{i, std::min(each, all.end() - i)});
}

// Tiles of 4x4 outputs, counted through the images, which have rows x columns each.
struct Tiles {
  int64_t rows, columns;
  Range range;
  bool first;  // of a share
  int64_t size() const { return range.count; }

  // Calls f(n, h, w, i) for the tiles, i = 0, 1, ..., whose outputs begin at (h, w) of image n.
  template <class F>
  void for_each(F f) const {
    for (int64_t i = 0; i < size(); ++i) {
      const int64_t tile = range.first + i, row = tile / columns;
      f(row / rows, row % rows * kTile, tile % columns * kTile, i);
    }
  }
};

// How a pass is cut over the tiles of outputs [N,H,W,..] that reads so many channels and writes so
// many.
class Plan {
 public:
  Plan(int64_t threads, int64_t N, int64_t H, int64_t W, int64_t read, int64_t written)
      : images_{tiles_along(H), tiles_along(W), {}, true},
        all_(N * images_.rows * images_.columns),
        written_(written) {
    choose_shares(threads);
    constexpr int64_t kLeast = 32;   // channels: with fewer products are slow
    constexpr int64_t kEnough = 64;  // tiles: with fewer filters' transforms would count
    constexpr int64_t kBytes = kSlots * int64_t(sizeof(float));
    const int64_t channels = kFiltersAtOnce / (read * kBytes) / kLeast * kLeast;
    channels_at_once_ = std::min(channels_, std::max(kLeast, channels));
    const int64_t tiles = kTilesAtOnce / ((read + channels_at_once_) * kBytes);
    tiles_at_once_ = balanced(tiles_, std::max(tiles, kEnough));
  }

  int64_t tiles_at_once() const { return tiles_at_once_; }
  int64_t channels_at_once() const { return channels_at_once_; }

  // Shares: `down` of tiles, times `across` of channels.
  int64_t down() const { return ceil_div(all_, tiles_); }
  int64_t across() const { return ceil_div(written_, channels_); }
  int64_t shares() const { return down() * across(); }
  // Which of `down` and `across` are a share's.
  int64_t down_of(int64_t share) const { return share / across(); }
  Range tiles_of(int64_t share) const {
    return common({down_of(share) * tiles_, tiles_}, {0, all_});
  }
  Range channels_of(int64_t share) const {
    return common({share % across() * channels_, channels_}, {0, written_});
  }

  // Calls work(share, tiles) for all tiles, as many as there are at once, those of a share by one
  // thread in their order. It says whether its products could be computed.
  template <class Work>
  void run(Work work) const {
    bool done = true;
#pragma omp parallel for schedule(static) reduction(&& : done)
    for (int64_t share = 0; share < shares(); ++share) {
      const Range all = tiles_of(share);
      in_parts(all, tiles_at_once_, [&](const Range& part) {
        const Tiles tiles{images_.rows, images_.columns, part, part.first == all.first};
        done = work(share, tiles) && done;
      });
    }
    ENSURE(done, "oneDNN could not multiply ", int(kSlots), " matrices of ", tiles_at_once(),
           " tiles and ", channels_at_once_, " channels");
  }
  // Calls step(channels, all) for a share's channels among these, as many as there are at once, and
  // says whether those are all.
  template <class Step>
  void for_channels(int64_t share, const Range& among, Step step) const {
    const Range own = common(channels_of(share), among);
    in_parts(own, channels_at_once_,
             [&](const Range& part) { step(part, part.count == own.count); });
  }

 private:
  // Threads that have the same tiles all transform them, as do those that have the same channels
  // their filters: as long as 16 products each.
  void choose_shares(int64_t threads) {
    constexpr int64_t kTransform = 16, kUnit = 16;
    const int64_t units = ceil_div(written_, kUnit);
    int64_t least = -1;
    for (int64_t across = 1; across <= std::min(threads, units); ++across) {
      const int64_t tiles = ceil_div(all_, threads / across),
                    channels = ceil_div(units, across) * kUnit,
                    cost = (tiles + kTransform) * (channels + kTransform);
      if (least < 0 || cost < least) least = cost, tiles_ = tiles, channels_ = channels;
    }
    channels_ = std::min(channels_, written_);
  }

  Tiles images_;
  int64_t all_, written_;
  int64_t tiles_ = 0, channels_ = 0;  // of a share
  int64_t tiles_at_once_ = 0, channels_at_once_ = 0;
};

// Matrices [rows, columns], one a slot.
struct Slots {
  float* data;
  int64_t rows, columns;
  // Floats from one to the next, which at powers of two apart would share sets of the caches.
  static int64_t pitch(int64_t rows, int64_t columns) {
    return ceil_div(rows * columns, 16) * 16 + 16;
  }
  int64_t pitch() const { return pitch(rows, columns); }
  float* row(int64_t i) const { return data + i * columns; }
};

// Memory of each share for slots of so many rows and columns at most.
struct Buffer {
  Tensor tensor;
  Buffer(Stream& stream, const Plan& plan, int64_t rows, int64_t columns)
      : tensor(Tensor::empty(stream, {plan.shares(), kSlots * Slots::pitch(rows, columns)})) {}
  Slots of(int64_t share, int64_t rows, int64_t columns) const {
    return {const_cast<float*>(tensor.data<float>()) + share * tensor.dim(1), rows, columns};
  }
};

// c = a b, or c += a b, in each slot; 'T': of a transposed. Whether it could.
inline bool multiply(char ta, const Slots& a, const Slots& b, const Slots& c, bool add) {
  bool done = true;
  for (int i = 0; i < kSlots; ++i)
    done = product(ta, c.rows, c.columns, b.rows, a.data + i * a.pitch(), a.columns,
                   b.data + i * b.pitch(), b.columns, c.data + i * c.pitch(), c.columns, add) &&
           done;
  return done;
}

}  // namespace tessera::cpu::winograd
