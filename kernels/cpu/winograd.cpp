// Each pass takes some rows of tiles at a time, at least one and as many as caches hold, and of
// these some of the filters' channels: both are transformed into one matrix a slot, a matrix
// product a slot is computed, and the products are transformed back.
#include "kernels/cpu/winograd.h"

#include <omp.h>

#include <numeric>

#include "kernels/cpu/winograd_transforms.h"

namespace tessera::cpu {
namespace {

using namespace winograd;

// Floats between slots, which at powers of two apart would share sets of the caches.
constexpr int64_t kPad = 16;

int64_t tiles_along(int64_t outputs) { return (outputs + kTile - 1) / kTile; }

// Tiles of 4x4 outputs: `count` rows of them from `first` on, counted through the images, which
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
      f(row / rows, row % rows * kTile, i % columns * kTile, i);
    }
  }
};

// Calls step(tiles) for all tiles of outputs [N,H,W,..], a part at a time: kTilesAtOnce bytes when
// `channels` channels of it are transformed, but not fewer tiles than are worth the filters'
// transformation.
template <class Step>
void for_tiles(int64_t N, int64_t H, int64_t W, int64_t channels, Step step) {
  Tiles tiles{tiles_along(H), tiles_along(W), 0, 0};
  constexpr int64_t kLeast = 64;
  const int64_t all = N * tiles.rows,
                bytes = tiles.columns * channels * kSlots * int64_t(sizeof(float)),
                most = std::max(kTilesAtOnce / bytes, (kLeast - 1) / tiles.columns + 1),
                parts = (all + most - 1) / most;
  for (const int64_t count = (all + parts - 1) / parts; tiles.first < all; tiles.first += count) {
    tiles.count = std::min(count, all - tiles.first);
    step(tiles);
  }
}

// Calls step(first, count) for all of so many channels of a filter's one side, a part at a time:
// kFiltersAtOnce bytes, or kLeast channels, when these are transformed, of `channels` channels of
// its other side.
template <class Step>
void for_filters(int64_t all, int64_t channels, Step step) {
  constexpr int64_t kLeast = 32;  // with fewer products are slow
  const int64_t most = kFiltersAtOnce / (channels * kSlots * int64_t(sizeof(float))),
                count = std::max(kLeast, most / kLeast * kLeast);
  for (int64_t first = 0; first < all; first += count) step(first, std::min(count, all - first));
}

// Matrices [rows, columns], one a slot.
struct Slots {
  Tensor tensor;
  int64_t rows, columns;
  float* data;

  Slots(Stream& stream, int64_t r, int64_t c)
      : tensor(Tensor::empty(stream, {kSlots, r * c + kPad})),
        rows(r),
        columns(c),
        data(tensor.data<float>()) {}
  int64_t pitch() const { return tensor.dim(1); }
  float* row(int64_t i) const { return data + i * columns; }
};

// [M,N] = a b, in each slot; 'T': transposed, and a's columns are read from a_first on.
struct Product {
  const Slots &a, &b;
  char ta, tb;
  int64_t M, N, K, a_first = 0;
};
// c = p, or c += p. Threads share slots, and rows where that would leave some without work.
void multiply_slots(Stream& stream, const Product& p, const Slots& c, bool add) {
  const int64_t parts = stream.device().threads() / std::gcd(kSlots, stream.device().threads()),
                count = (p.M + parts - 1) / parts;
  bool done = true;
#pragma omp parallel for schedule(static) collapse(2) reduction(&& : done)
  for (int64_t part = 0; part < parts; ++part)
    for (int i = 0; i < kSlots; ++i) {
      const int64_t m = part * count, rows = std::min(count, p.M - m);
      if (rows <= 0) continue;
      const float* a = p.a.data + i * p.a.pitch() + p.a_first + m * (p.ta == 'N' ? p.a.columns : 1);
      done = product(p.ta, p.tb, rows, p.N, p.K, a, p.a.columns, p.b.data + i * p.b.pitch(),
                     p.b.columns, c.row(m) + i * c.pitch(), c.columns, add) &&
             done;
    }
  ENSURE(done, "oneDNN could not multiply ", int(kSlots), " times [", p.M, ',', p.K, "] by [", p.K,
         ',', p.N, ']');
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

// Pointers to image n's pixels (h + i >> shift, w + j >> shift).
template <int N, class T>
struct Square {
  T* at[N][N];
  Square(const Pixels<T>& from, int64_t n, int64_t h, int64_t w, int shift = 0) {
    for (int i = 0; i < N; ++i)
      for (int j = 0; j < N; ++j) at[i][j] = from.at(n, (h + i) >> shift, (w + j) >> shift);
  }
};

void take_patches(const Tiles& tiles, const ConvSpec& spec, const WinogradPart& part,
                  const Tensor& zeros, const Slots& to) {
  const int shift = part.upsampled ? 1 : 0;
  with_storage(part.x.dtype(), [&]<class T>() {
    const auto from = pixels<const T>(part.x, zeros);
    tiles.for_each([&](int64_t n, int64_t h, int64_t w, int64_t i) {
      const Square<kPatch, const T> x(from, n, h - spec.pad_h, w - spec.pad_w, shift);
      put_patch(x.at, from.C, to.row(i), to.pitch());
    });
  });
}

void take_outputs_gradient(const Tiles& tiles, const Tensor& dy, const Tensor& zeros,
                           const Slots& to) {
  with_storage(dy.dtype(), [&]<class T>() {
    const auto from = pixels<const T>(dy, zeros);
    tiles.for_each([&](int64_t n, int64_t h, int64_t w, int64_t i) {
      put_outputs_gradient(Square<kTile, const T>(from, n, h, w).at, from.C, to.row(i), to.pitch());
    });
  });
}

// The part's channels from c on.
void put_tiles(Stream& stream, const Tiles& tiles, const Slots& from, const WinogradPart& part,
               int64_t c, const Tensor& b) {
  const int64_t C = part.x.dim(3);
  // Where threads write what lies outside of an image whose size is no multiple of a tile's.
  const Tensor ignored = Tensor::zeros(stream, {stream.device().threads(), C}, part.x.dtype());
  const float* bias = b.data<float>() + c;
  with_storage(part.x.dtype(), [&]<class T>() {
    const auto image = pixels<T>(part.x, ignored);
    tiles.for_each([&](int64_t n, int64_t h, int64_t w, int64_t i) {
      auto to = image;
      to.outside += omp_get_thread_num() * C;
      to.data += c, to.outside += c;
      const auto put = [&](const auto& y) {
        put_outputs(from.row(i), from.pitch(), from.columns, bias, y.at, part.mode);
      };
      if (part.upsampled)
        put(Square<kTile / 2, T>(to, n, h / 2, w / 2));
      else
        put(Square<kTile, T>(to, n, h, w));
    });
  });
}

// [K,C] a slot: rows from k on and columns from c on of the filters w [K,3,3,C].
Slots filters(Stream& stream, const Tensor& w, int64_t k, int64_t K, int64_t c, int64_t C,
              bool turned) {
  Slots to(stream, K, C);
  const int64_t all = w.dim(3);
  with_storage(w.dtype(), [&]<class T>() {
    const T* from = w.data<T>() + k * 9 * all + c;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < K; ++i)
      put_filter(from + i * 9 * all, all, C, turned, to.row(i), to.pitch());
  });
  return to;
}

// The gradient of filters from k on, of channels from c on, from that of them transformed.
void put_filter_gradients(const Slots& from, int64_t k, int64_t c, const Grad& dw) {
  const int64_t all = dw.tensor.dim(3);
  float* to = Tensor(dw.tensor).data<float>() + k * 9 * all + c;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < from.rows; ++i)
    put_filter_gradient(from.row(i), from.pitch(), from.columns, to + i * 9 * all, all, dw.mode);
}

int64_t most_channels(const WinogradParts& parts) {
  int64_t most = 0;
  for (const WinogradPart& part : parts) most = std::max(most, part.x.dim(3));
  return most;
}

// The parts' patches, transformed.
std::vector<Slots> patches_of(Stream& stream, const Tiles& tiles, const ConvSpec& spec,
                              const WinogradParts& parts, const Tensor& zeros) {
  std::vector<Slots> v;
  for (const WinogradPart& part : parts) {
    v.emplace_back(stream, tiles.size(), part.x.dim(3));
    take_patches(tiles, spec, part, zeros, v.back());
  }
  return v;
}

}  // namespace

bool goes_by_winograd(Stream& stream, const ConvProblem& p, const Tensor& x) {
  constexpr int64_t kLeast = 32;  // channels: with fewer the transforms take longer than they save
  const int64_t tiles = tiles_along(p.P) * tiles_along(p.Q);
  // At most half of the definition's products in the forward pass.
  const bool saves = 2 * kSlots * tiles <= p.R * p.S * p.P * p.Q;
  return p.R == 3 && p.S == 3 && p.spec.stride == 1 && p.C >= kLeast && p.K >= kLeast && saves &&
         (x.dtype() == DType::f32 || is_widened(stream, x));
}

void winograd_fwd(Stream& stream, const ConvProblem& p, const WinogradParts& x, const Tensor& w,
                  const Tensor& b, const Tensor& y) {
  const Tensor zeros = Tensor::zeros(stream, {most_channels(x)}, x[0].x.dtype()),
               bias = b ? b : Tensor::zeros(stream, {p.K});
  for_tiles(p.N, p.P, p.Q, w.dim(3) + p.K, [&](const Tiles& tiles) {
    const std::vector<Slots> v = patches_of(stream, tiles, p.spec, x, zeros);
    for_filters(p.K, most_channels(x), [&](int64_t k, int64_t K) {
      const Slots m(stream, tiles.size(), K);
      for (size_t i = 0; i < x.size(); ++i) {
        const int64_t C = v[i].columns;
        const Slots u = filters(stream, w, k, K, x[i].first, C, false);
        multiply_slots(stream, {v[i], u, 'N', 'T', tiles.size(), K, C}, m, i > 0);
      }
      put_tiles(stream, tiles, m, {y}, k, bias);
    });
  });
}

void winograd_bwd_data(Stream& stream, const ConvProblem& p, const Tensor& dy, const Tensor& w,
                       const WinogradParts& dx) {
  const Tensor zeros = Tensor::zeros(stream, {p.K}, dy.dtype()),
               no_bias = Tensor::zeros(stream, {most_channels(dx)});
  // dx is a convolution of dy with the filter turned.
  const ConvSpec spec{1, 2 - p.spec.pad_h, 2 - p.spec.pad_w};
  for_tiles(p.N, p.H, p.W, p.K + most_channels(dx), [&](const Tiles& tiles) {
    const Slots v(stream, tiles.size(), p.K);
    take_patches(tiles, spec, {dy}, zeros, v);
    for (const WinogradPart& part : dx)
      for_filters(part.x.dim(3), p.K, [&](int64_t c, int64_t C) {
        const Slots u = filters(stream, w, 0, p.K, part.first + c, C, true),
                    m(stream, tiles.size(), C);
        multiply_slots(stream, {v, u, 'N', 'N', tiles.size(), C, p.K}, m, false);
        put_tiles(stream, tiles, m, part, c, no_bias);
      });
  });
}

void winograd_bwd_weight(Stream& stream, const ConvProblem& p, const WinogradParts& x,
                         const Tensor& dy, Grad dw, const Grad& db) {
  const int64_t most = most_channels(x);
  const Tensor zeros = Tensor::zeros(stream, {std::max(most, p.K)}, dy.dtype());
  for_tiles(p.N, p.P, p.Q, most + p.K, [&](const Tiles& tiles) {
    const Slots dm(stream, tiles.size(), p.K);
    take_outputs_gradient(tiles, dy, zeros, dm);
    for (size_t i = 0; i < x.size(); ++i) {
      const int64_t C = x[i].x.dim(3);
      const Slots v(stream, tiles.size(), C);
      take_patches(tiles, p.spec, x[i], zeros, v);
      for_filters(p.K, C, [&](int64_t k, int64_t K) {
        const Slots du(stream, K, C);
        multiply_slots(stream, {dm, v, 'T', 'N', K, C, tiles.size(), k}, du, false);
        put_filter_gradients(du, k, x[i].first, dw);
      });
    }
    dw.mode = GradMode::Accumulate;
  });
  if (db)  // the sum of dy over all pixels, as of one image
    tessera::add_broadcast_bwd_t(stream, dy.reshape({1, p.N * p.P, p.Q, p.K}),
                                 {db.tensor.reshape({1, p.K}), db.mode});
}

}  // namespace tessera::cpu
