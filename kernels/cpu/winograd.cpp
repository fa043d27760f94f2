// Each pass takes some rows of tiles at a time, at least one and as many as caches hold, in three
// steps: all tiles are transformed into one matrix [tiles, channels] a slot; a matrix product a
// slot; the products are transformed back.
#include "kernels/cpu/winograd.h"

#include <omp.h>

#include <numeric>

#include "kernels/cpu/winograd_transforms.h"

namespace tessera::cpu {
namespace {

using namespace winograd;

constexpr int64_t kAtOnce = 4 << 20;  // bytes of transformed tiles
// Floats between slots, which at powers of two apart would share sets of the caches.
constexpr int64_t kPad = 16;

// Tiles of 2x2 outputs: `count` rows of them from `first` on, counted through the images, which
// have rows x columns each.
struct Tiles {
  int64_t rows, columns, first, count;
  int64_t size() const { return count * columns; }

  // Calls f(n, h, w, i) by all threads, for tile i whose outputs begin at (h, w) of image n.
  template <class F>
  void for_each(F f) const {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < size(); ++i) {
      const int64_t row = first + i / columns;
      f(row / rows, row % rows * 2, i % columns * 2, i);
    }
  }
};

// Calls step(tiles) for all tiles of outputs [N,H,W,..], a part at a time: kAtOnce bytes when
// `channels` channels of it are transformed.
template <class Step>
void for_tiles(int64_t N, int64_t H, int64_t W, int64_t channels, Step step) {
  Tiles tiles{(H + 1) / 2, (W + 1) / 2, 0, 0};
  const int64_t all = N * tiles.rows,
                bytes = tiles.columns * channels * kSlots * int64_t(sizeof(float)),
                parts = std::min(all, all * bytes / kAtOnce + 1);
  for (const int64_t count = (all + parts - 1) / parts; tiles.first < all; tiles.first += count) {
    tiles.count = std::min(count, all - tiles.first);
    step(tiles);
  }
}

// Matrices [rows, columns], one a slot.
struct Slots {
  Tensor tensor;
  int64_t rows, columns;
  float* data;

  Slots(Stream& stream, int64_t slots, int64_t r, int64_t c)
      : tensor(Tensor::empty(stream, {slots, r * c + kPad})),
        rows(r),
        columns(c),
        data(tensor.data<float>()) {}
  int64_t pitch() const { return tensor.dim(1); }
  float* row(int64_t i) const { return data + i * columns; }
};

// [M,N] = a b, in each slot; 'T': transposed.
struct Product {
  const Slots &a, &b;
  char ta, tb;
  int64_t M, N, K;
};
// c = p, or c += p, in the first `slots` slots. Threads share slots, and rows where that would
// leave some without work.
void multiply_slots(Stream& stream, int slots, const Product& p, const Slots& c, bool add) {
  const int64_t parts = stream.device().threads() / std::gcd(slots, stream.device().threads()),
                count = (p.M + parts - 1) / parts;
  bool done = true;
#pragma omp parallel for schedule(static) collapse(2) reduction(&& : done)
  for (int64_t part = 0; part < parts; ++part)
    for (int i = 0; i < slots; ++i) {
      const int64_t m = part * count, rows = std::min(count, p.M - m);
      if (rows <= 0) continue;
      const float *a = p.a.data + i * p.a.pitch() + m * (p.ta == 'N' ? p.a.columns : 1),
                  *b = p.b.data + i * p.b.pitch();
      done = product(p.ta, p.tb, rows, p.N, p.K, a, p.a.columns, b, p.b.columns,
                     c.data + i * c.pitch() + m * c.columns, c.columns, add) &&
             done;
    }
  ENSURE(done, "oneDNN could not multiply ", slots, " times [", p.M, ',', p.K, "] by [", p.K, ',',
         p.N, ']');
}

// An image tensor, with zeros around it.
template <class T>
struct Pixels {
  T* data;
  int64_t H, W, C;
  T* outside;  // C elements
  T* at(int64_t n, int64_t h, int64_t w) const {
    return h >= 0 && h < H && w >= 0 && w < W ? data + ((n * H + h) * W + w) * C : outside;
  }
};
template <class T>
Pixels<T> pixels(const Tensor& x, const Tensor& outside) {
  using Element = std::remove_const_t<T>;
  const auto data = [](const Tensor& tensor) {
    return const_cast<Element*>(tensor.data<Element>());
  };
  return {data(x), x.dim(1), x.dim(2), x.dim(3), data(outside)};
}

void take_patches(const Tiles& tiles, const ConvSpec& spec, const WinogradPart& part,
                  const Tensor& zeros, const Slots& to) {
  with_storage(part.x.dtype(), [&]<class T>() {
    const auto from = pixels<const T>(part.x, zeros);
    tiles.for_each([&](int64_t n, int64_t h, int64_t w, int64_t i) {
      if (part.upsampled) {
        const T* x[3][3];
        for (int r = 0; r < 3; ++r)
          for (int s = 0; s < 3; ++s) x[r][s] = from.at(n, h / 2 + r - 1, w / 2 + s - 1);
        return put_upsampled_patch(x, from.C, to.row(i), to.pitch());
      }
      const T* x[4][4];
      for (int r = 0; r < 4; ++r)
        for (int s = 0; s < 4; ++s) x[r][s] = from.at(n, h + r - spec.pad_h, w + s - spec.pad_w);
      put_patch(x, from.C, to.row(i), to.pitch());
    });
  });
}

void take_outputs_gradient(const Tiles& tiles, const Tensor& dy, const Tensor& zeros,
                           const Slots& to) {
  with_storage(dy.dtype(), [&]<class T>() {
    const auto from = pixels<const T>(dy, zeros);
    tiles.for_each([&](int64_t n, int64_t h, int64_t w, int64_t i) {
      const T* y[2][2] = {{from.at(n, h, w), from.at(n, h, w + 1)},
                          {from.at(n, h + 1, w), from.at(n, h + 1, w + 1)}};
      put_outputs_gradient(y, from.C, to.row(i), to.pitch());
    });
  });
}

void put_tiles(Stream& stream, const Tiles& tiles, const Slots& from, const WinogradPart& part,
               const Tensor& b) {
  const int64_t C = part.x.dim(3);
  // Where threads write what lies outside of an image of odd size.
  const Tensor ignored = Tensor::zeros(stream, {stream.device().threads(), C}, part.x.dtype());
  const float* bias = b.data<float>();
  with_storage(part.x.dtype(), [&]<class T>() {
    const auto image = pixels<T>(part.x, ignored);
    tiles.for_each([&](int64_t n, int64_t h, int64_t w, int64_t i) {
      auto to = image;
      to.outside += omp_get_thread_num() * C;
      if (part.upsampled)
        return put_sum_of_outputs(from.row(i), from.pitch(), C, to.at(n, h / 2, w / 2), part.mode);
      T* const y[2][2] = {{to.at(n, h, w), to.at(n, h, w + 1)},
                          {to.at(n, h + 1, w), to.at(n, h + 1, w + 1)}};
      put_outputs(from.row(i), from.pitch(), C, bias, y, part.mode);
    });
  });
}

// [K,C] a slot, of C channels from `first` on.
Slots filters(Stream& stream, const Tensor& w, int64_t first, int64_t C, bool turned) {
  Slots to(stream, kSlots, w.dim(0), C);
  with_storage(w.dtype(), [&]<class T>() {
    const T* from = w.data<T>() + first;
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < w.dim(0); ++k)
      put_filter(from + k * 9 * w.dim(3), w.dim(3), C, turned, to.row(k), to.pitch());
  });
  return to;
}

int slots_of(const WinogradPart& part) { return part.upsampled ? kUpsampledSlots : kSlots; }

int64_t most_channels(const WinogradParts& parts) {
  int64_t most = 0;
  for (const WinogradPart& part : parts) most = std::max(most, part.x.dim(3));
  return most;
}

// db[k] (+)= the sum of dy over the tiles: slot (1, 1) holds a tile's four.
void put_bias_gradient(const Slots& dm, int64_t tiles, const Grad& db) {
  const float* from = dm.data + slot(1, 1) * dm.pitch();
  float* to = Tensor(db.tensor).data<float>();
  constexpr int64_t kLanes = 16;
#pragma omp parallel for schedule(static)
  for (int64_t first = 0; first < dm.columns; first += kLanes) {
    const int64_t n = std::min(kLanes, dm.columns - first);
    double sums[kLanes] = {};
    for (int64_t i = 0; i < tiles; ++i)
      for (int64_t k = 0; k < n; ++k) sums[k] += double(from[i * dm.columns + first + k]);
    put_row(to + first, n, db.mode, [&](int64_t k) { return float(sums[k]); });
  }
}

}  // namespace

bool goes_by_winograd(Stream& stream, const ConvProblem& p, const Tensor& x) {
  constexpr int64_t kLeast = 32;  // channels: with fewer the transforms take longer than they save
  return p.R == 3 && p.S == 3 && p.spec.stride == 1 && p.C >= kLeast && p.K >= kLeast &&
         (x.dtype() == DType::f32 || is_widened(stream, x));
}

void winograd_fwd(Stream& stream, const ConvProblem& p, const WinogradParts& x, const Tensor& w,
                  const Tensor& b, const Tensor& y) {
  const int64_t most = most_channels(x);
  const Tensor zeros = Tensor::zeros(stream, {most}, x[0].x.dtype()),
               bias = b ? b : Tensor::zeros(stream, {p.K});
  std::vector<Slots> u;
  for (const WinogradPart& part : x)
    u.push_back(filters(stream, w, part.first, part.x.dim(3), false));
  for_tiles(p.N, p.P, p.Q, most + p.K, [&](const Tiles& tiles) {
    const Slots m(stream, kSlots, tiles.size(), p.K);
    for (size_t i = 0; i < x.size(); ++i) {
      const int64_t C = x[i].x.dim(3);
      const Slots v(stream, slots_of(x[i]), tiles.size(), C);
      take_patches(tiles, p.spec, x[i], zeros, v);
      multiply_slots(stream, slots_of(x[i]), {v, u[i], 'N', 'T', tiles.size(), p.K, C}, m, i > 0);
    }
    put_tiles(stream, tiles, m, {y}, bias);
  });
}

void winograd_bwd_data(Stream& stream, const ConvProblem& p, const Tensor& dy, const Tensor& w,
                       const WinogradParts& dx) {
  const int64_t most = most_channels(dx);
  const Tensor zeros = Tensor::zeros(stream, {p.K}, dy.dtype()),
               no_bias = Tensor::zeros(stream, {most});
  // dx is a convolution of dy with the filter turned.
  const ConvSpec spec{1, 2 - p.spec.pad_h, 2 - p.spec.pad_w};
  std::vector<Slots> u;
  for (const WinogradPart& part : dx)
    u.push_back(filters(stream, w, part.first, part.x.dim(3), true));
  for_tiles(p.N, p.H, p.W, p.K + most, [&](const Tiles& tiles) {
    const Slots v(stream, kSlots, tiles.size(), p.K);
    take_patches(tiles, spec, {dy}, zeros, v);
    for (size_t i = 0; i < dx.size(); ++i) {
      const int64_t C = dx[i].x.dim(3);
      const Slots m(stream, slots_of(dx[i]), tiles.size(), C);
      multiply_slots(stream, slots_of(dx[i]), {v, u[i], 'N', 'N', tiles.size(), C, p.K}, m, false);
      put_tiles(stream, tiles, m, dx[i], no_bias);
    }
  });
}

void winograd_bwd_weight(Stream& stream, const ConvProblem& p, const WinogradParts& x,
                         const Tensor& dy, const Grad& dw, const Grad& db) {
  const int64_t most = most_channels(x), all = dw.tensor.dim(3);
  const Tensor zeros = Tensor::zeros(stream, {std::max(most, p.K)}, dy.dtype());
  std::vector<Slots> du;
  for (const WinogradPart& part : x) du.emplace_back(stream, slots_of(part), p.K, part.x.dim(3));
  Grad bias = db;
  for_tiles(p.N, p.P, p.Q, most + p.K, [&](const Tiles& tiles) {
    const Slots dm(stream, kSlots, tiles.size(), p.K);
    take_outputs_gradient(tiles, dy, zeros, dm);
    for (size_t i = 0; i < x.size(); ++i) {
      const int64_t C = x[i].x.dim(3);
      const Slots v(stream, slots_of(x[i]), tiles.size(), C);
      take_patches(tiles, p.spec, x[i], zeros, v);
      multiply_slots(stream, slots_of(x[i]), {dm, v, 'T', 'N', p.K, C, tiles.size()}, du[i],
                     tiles.first > 0);
    }
    if (bias) put_bias_gradient(dm, tiles.size(), bias);
    bias.mode = GradMode::Accumulate;
  });
  for (size_t i = 0; i < x.size(); ++i) {
    float* to = Tensor(dw.tensor).data<float>() + x[i].first;
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < p.K; ++k)
      put_filter_gradient(du[i].row(k), du[i].pitch(), slots_of(x[i]), x[i].x.dim(3),
                          to + k * 9 * all, all, dw.mode);
  }
}

}  // namespace tessera::cpu
