// A pass is cut into shares, one a thread, of tiles and of the channels that are written. A thread
// does all of its share, in memory of its own: what another core has just written is slow to read.
// It takes as many tiles at a time as caches hold, and for these some of the channels: tiles and
// filters are transformed into one matrix a slot, a matrix product a slot is computed, and the
// products are transformed back.
#include "kernels/cpu/winograd.h"

#include "kernels/composed.h"
#include "kernels/cpu/winograd_plan.h"

namespace tessera::cpu {
namespace {

using namespace winograd;

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

// Of channels from k on.
void take_outputs_gradient(const Tiles& tiles, const Tensor& dy, int64_t k, const Tensor& zeros,
                           const Slots& to) {
  with_storage(dy.dtype(), [&]<class T>() {
    auto from = pixels<const T>(dy, zeros);
    from.data += k;
    tiles.for_each([&](int64_t n, int64_t h, int64_t w, int64_t i) {
      const Square<kTile, const T> y(from, n, h, w);
      put_outputs_gradient(y.at, to.columns, to.row(i), to.pitch());
    });
  });
}

// The part's channels from c on. What lies outside of an image whose size is no multiple of a
// tile's is written to `outside`.
void put_tiles(const Tiles& tiles, const Slots& from, const WinogradPart& part, int64_t c,
               const float* bias, const Tensor& outside) {
  with_storage(part.x.dtype(), [&]<class T>() {
    auto to = pixels<T>(part.x, outside);
    to.data += c;
    tiles.for_each([&](int64_t n, int64_t h, int64_t w, int64_t i) {
      const auto put = [&](const auto& y) {
        put_outputs(from.row(i), from.pitch(), from.columns, bias + c, y.at, part.mode);
      };
      if (part.upsampled)
        put(Square<kTile / 2, T>(to, n, h / 2, w / 2));
      else
        put(Square<kTile, T>(to, n, h, w));
    });
  });
}

// [C,K] a slot: of filters w [K,3,3,C], those from k on and of them the channels from c on.
void take_filters(const Tensor& w, int64_t k, int64_t c, const Slots& to) {
  constexpr int64_t kLanes = 16;
  const int64_t all = w.dim(3);
  with_storage(w.dtype(), [&]<class T>() {
    float block[9][kLanes][kLanes];  // of taps, channels, filters
    in_parts({0, to.columns}, kLanes, [&](const Range& filters) {
      in_parts({0, to.rows}, kLanes, [&](const Range& channels) {
        const T* from = w.data<T>() + (k + filters.first) * 9 * all + c + channels.first;
        for (int64_t i = 0; i < filters.count; ++i)
          for (int tap = 0; tap < 9; ++tap)
            for (int64_t j = 0; j < channels.count; ++j)
              block[tap][j][i] = to_float(from[(i * 9 + tap) * all + j]);
        for (int64_t j = 0; j < channels.count; ++j)
          put_filter(block[0][j], kLanes * kLanes, filters.count, false,
                     to.row(channels.first + j) + filters.first, to.pitch());
      });
    });
  });
}

// [K,C] a slot: of filters w [K,3,3,C], turned by half a turn, the channels from c on.
void take_turned_filters(const Tensor& w, int64_t c, const Slots& to) {
  const int64_t all = w.dim(3);
  with_storage(w.dtype(), [&]<class T>() {
    for (int64_t k = 0; k < to.rows; ++k)
      put_filter(w.data<T>() + k * 9 * all + c, all, to.columns, true, to.row(k), to.pitch());
  });
}

// The gradient of filters from k on, of channels from c on, from that of them transformed [K,C].
void put_filter_gradients(const Slots& from, int64_t k, int64_t c, const Grad& dw) {
  const int64_t all = dw.tensor.dim(3);
  float* to = Tensor(dw.tensor).data<float>() + k * 9 * all + c;
  for (int64_t i = 0; i < from.rows; ++i)
    put_filter_gradient(from.row(i), from.pitch(), from.columns, to + i * 9 * all, all, dw.mode);
}

int64_t most_channels(const WinogradParts& parts) {
  int64_t most = 0;
  for (const WinogradPart& part : parts) most = std::max(most, part.x.dim(3));
  return most;
}

// buffer(part) of each part.
template <class Make>
std::vector<Buffer> buffers(const WinogradParts& parts, Make buffer) {
  std::vector<Buffer> all;
  for (const WinogradPart& part : parts) all.push_back(buffer(part));
  return all;
}
// Memory for each part's tiles.
std::vector<Buffer> tiles_of(Stream& stream, const Plan& plan, const WinogradParts& parts) {
  return buffers(parts, [&](const WinogradPart& part) {
    return Buffer(stream, plan, plan.tiles_at_once(), part.x.dim(3));
  });
}

}  // namespace

bool goes_by_winograd(Stream& stream, const ConvProblem& p, const Tensor& x) {
  constexpr int64_t kLeast = 32;  // channels: with fewer the transforms take longer than they save
  constexpr int64_t kFew = 4;     // tiles: with fewer the filters' do
  const int64_t tiles = tiles_along(p.P) * tiles_along(p.Q);
  // At most half of the definition's products in the forward pass.
  const bool saves = 2 * kSlots * tiles <= p.R * p.S * p.P * p.Q;
  return p.R == 3 && p.S == 3 && p.spec.stride == 1 && p.C >= kLeast && p.K >= kLeast && saves &&
         p.N * tiles >= kFew &&
         (x.dtype() == DType::f32 || stream.state<OneDnn>().products != Bf16Products::Tiles);
}

void winograd_fwd(Stream& stream, const ConvProblem& p, const WinogradParts& x, const Tensor& w,
                  const Tensor& b, const Tensor& y) {
  const Plan plan(stream.device().threads(), p.N, p.P, p.Q, w.dim(3), p.K);
  const Tensor zeros = Tensor::zeros(stream, {most_channels(x)}, x[0].x.dtype()),
               bias = b ? b : Tensor::zeros(stream, {p.K}),
               outside = Tensor::empty(stream, {plan.shares(), p.K}, y.dtype());
  const std::vector<Buffer> patches = tiles_of(stream, plan, x),
                            filters = buffers(x, [&](const WinogradPart&part) {
                              return Buffer(stream, plan, part.x.dim(3), plan.channels_at_once());
                            });
  const Buffer products(stream, plan, plan.tiles_at_once(), plan.channels_at_once());

  plan.run([&](int64_t share, const Tiles& tiles) {
    const auto v = [&](size_t i) { return patches[i].of(share, tiles.size(), x[i].x.dim(3)); };
    for (size_t i = 0; i < x.size(); ++i) take_patches(tiles, p.spec, x[i], zeros, v(i));
    bool done = true;
    plan.for_channels(share, {0, p.K}, [&](const Range& k, bool all) {
      const Slots m = products.of(share, tiles.size(), k.count);
      for (size_t i = 0; i < x.size(); ++i) {
        const Slots u = filters[i].of(share, x[i].x.dim(3), k.count);
        if (tiles.first || !all) take_filters(w, k.first, x[i].first, u);
        done = multiply('N', v(i), u, m, i > 0) && done;
      }
      put_tiles(tiles, m, {y}, k.first, bias.data<float>(), outside.slice(share * p.K, {p.K}));
    });
    return done;
  });
}

void winograd_bwd_data(Stream& stream, const ConvProblem& p, const Tensor& dy, const Tensor& w,
                       const WinogradParts& dx) {
  const int64_t most = most_channels(dx);
  const Plan plan(stream.device().threads(), p.N, p.H, p.W, p.K, w.dim(3));
  const Tensor zeros = Tensor::zeros(stream, {p.K}, dy.dtype()),
               no_bias = Tensor::zeros(stream, {most}),
               outside = Tensor::empty(stream, {plan.shares(), most}, dy.dtype());
  const Buffer patches(stream, plan, plan.tiles_at_once(), p.K),
      products(stream, plan, plan.tiles_at_once(), plan.channels_at_once());
  const std::vector<Buffer> filters = buffers(
      dx, [&](const WinogradPart&) { return Buffer(stream, plan, p.K, plan.channels_at_once()); });
  // dx is a convolution of dy with the filter turned.
  const ConvSpec spec{1, 2 - p.spec.pad_h, 2 - p.spec.pad_w};

  plan.run([&](int64_t share, const Tiles& tiles) {
    const Slots v = patches.of(share, tiles.size(), p.K);
    take_patches(tiles, spec, {dy}, zeros, v);
    bool done = true;
    for (size_t i = 0; i < dx.size(); ++i)
      plan.for_channels(share, {dx[i].first, dx[i].x.dim(3)}, [&](const Range& c, bool all) {
        const Slots u = filters[i].of(share, p.K, c.count),
                    m = products.of(share, tiles.size(), c.count);
        if (tiles.first || !all) take_turned_filters(w, c.first, u);
        done = multiply('N', v, u, m, false) && done;
        put_tiles(tiles, m, dx[i], c.first - dx[i].first, no_bias.data<float>(),
                  outside.slice(share * most, {most}));
      });
    return done;
  });
}

void winograd_bwd_weight(Stream& stream, const ConvProblem& p, const WinogradParts& x,
                         const Tensor& dy, Grad dw, const Grad& db) {
  const int64_t most = most_channels(x);
  const Plan plan(stream.device().threads(), p.N, p.P, p.Q, dw.tensor.dim(3), p.K);
  const Tensor zeros = Tensor::zeros(stream, {std::max(most, p.K)}, dy.dtype());
  const std::vector<Buffer> patches = tiles_of(stream, plan, x);
  const Buffer outputs(stream, plan, plan.tiles_at_once(), plan.channels_at_once()),
      filters(stream, plan, plan.channels_at_once(), most);
  // What shares of other tiles than the first add to dw.
  const Tensor sums = Tensor::empty(stream, {plan.down() - 1, dw.tensor.numel()});

  plan.run([&](int64_t share, const Tiles& tiles) {
    const auto v = [&](size_t i) { return patches[i].of(share, tiles.size(), x[i].x.dim(3)); };
    for (size_t i = 0; i < x.size(); ++i) take_patches(tiles, p.spec, x[i], zeros, v(i));
    const int64_t down = plan.down_of(share);
    Grad sum = dw;
    if (down > 0) sum = {sums.slice((down - 1) * dw.tensor.numel(), dw.tensor.shape())};
    if (!tiles.first) sum.mode = GradMode::Accumulate;
    bool done = true;
    plan.for_channels(share, {0, p.K}, [&](const Range& k, bool) {
      const Slots dm = outputs.of(share, tiles.size(), k.count);
      take_outputs_gradient(tiles, dy, k.first, zeros, dm);
      for (size_t i = 0; i < x.size(); ++i) {
        const Slots du = filters.of(share, k.count, x[i].x.dim(3));
        done = multiply('T', dm, v(i), du, false) && done;
        put_filter_gradients(du, k.first, x[i].first, sum);
      }
    });
    return done;
  });
  for (int64_t i = 0; i + 1 < plan.down(); ++i)
    put_floats(sums.slice(i * dw.tensor.numel(), dw.tensor.shape()), dw.tensor,
               GradMode::Accumulate);
  composed::sum_pixels(stream, dy, db);
}

}  // namespace tessera::cpu
