// Columns of a matrix apart, and their gradients together again: a thread has one pack of 16 bytes
// of a row where all widths come in such packs, else one element.
#include "kernels/cuda/index.h"

namespace tessera::TESSERA_CUDA {
namespace {

constexpr int kMostParts = 16;  // of a launch

// Parts of a matrix that follow each other: [rows, end - the end before] each, or null.
template <class T>
struct Parts {
  T* data[kMostParts];
  int64_t end[kMostParts];

  // f(part, its element at row and column); the column is counted from the first part's.
  template <class F>
  __device__ __forceinline__ void at(int64_t row, int64_t column, const F& f) const {
    int64_t begin = 0;
    int part = 0;
    for (; column >= end[part]; ++part) begin = end[part];
    f(data[part], row * (end[part] - begin) + (column - begin));
  }
};

template <class T, int N>
struct SplitFwd {
  Divisor by_packs;
  const T* x;
  int64_t C;
  Parts<T> parts;
  __device__ void operator()(int64_t i) const {
    const int64_t column = by_packs.divide(i) * N;
    const auto values = Pack<T, N>::load(x + i * C + column);
    parts.at(i, column, [&](T* part, int64_t element) { values.store(part + element); });
  }
};

template <class T, int N>
struct SplitBwd {
  Divisor by_packs;
  Parts<const T> parts;
  T* dx;
  int64_t C;
  bool accumulate;
  __device__ void operator()(int64_t i) const {
    const int64_t column = by_packs.divide(i) * N;
    T* const to = dx + i * C + column;
    parts.at(i, column, [&](const T* part, int64_t element) {
      if (part || !accumulate)
        put_pack(to, part ? Pack<T, N>::load(part + element) : Pack<T, N>{}, accumulate);
    });
  }
};

// Calls f(packs, parts, first column, columns) for as many parts as a launch takes, until all are
// done. packs: how many neighbours are moved at once.
template <class T, class F>
void each_launch(std::span<const int64_t> widths, const std::vector<T*>& data, const void* matrix,
                 int64_t C, const F& f) {
  using Element = std::remove_const_t<T>;
  constexpr int N = kPack<Element>;
  bool packed = packs_fit<Element, N>(C, static_cast<const Element*>(matrix));
  for (size_t i = 0; i < widths.size(); ++i)
    packed = packed && packs_fit<Element, N>(widths[i], data[i]);
  int64_t first = 0;
  for (size_t i = 0; i < widths.size(); i += kMostParts) {
    Parts<T> parts{};
    int64_t columns = 0;
    for (size_t j = 0; j < kMostParts && i + j < widths.size(); ++j) {
      parts.data[j] = data[i + j];
      parts.end[j] = columns += widths[i + j];
    }
    if (packed)
      f(std::integral_constant<int, N>{}, parts, first, columns);
    else
      f(std::integral_constant<int, 1>{}, parts, first, columns);
    first += columns;
  }
}

}  // namespace

void split_columns_fwd(Stream& stream, const Tensor& x, std::span<Tensor> y) {
  const int64_t rows = x.dim(0), C = x.dim(1);
  with_storage(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.data<T>();
    std::vector<T*> data;
    std::vector<int64_t> widths;
    for (Tensor& part : y) data.push_back(part.data<T>()), widths.push_back(part.dim(1));
    each_launch(widths, data, from, C,
                [&](auto pack, const Parts<T>& parts, int64_t first, int64_t columns) {
                  constexpr int N = decltype(pack)::value;
                  for_each(stream, rows * columns / N,
                           SplitFwd<T, N>{Divisor(columns / N), from + first, C, parts});
                });
  });
}

void split_columns_bwd(Stream& stream, std::span<const int64_t> widths, std::span<const Tensor> dy,
                       Grad dx) {
  const int64_t rows = dx.tensor.dim(0), C = dx.tensor.dim(1);
  with_storage(dx.tensor.dtype(), [&](auto zero) {
    using T = decltype(zero);
    T* to = dx.tensor.data<T>();
    std::vector<const T*> data;
    for (const Tensor& part : dy) data.push_back(data_or_null<T>(part));
    each_launch(widths, data, to, C,
                [&](auto pack, const Parts<const T>& parts, int64_t first, int64_t columns) {
                  constexpr int N = decltype(pack)::value;
                  for_each(stream, rows * columns / N,
                           SplitBwd<T, N>{Divisor(columns / N), parts, to + first, C,
                                          dx.mode == GradMode::Accumulate});
                });
  });
}

}  // namespace tessera::TESSERA_CUDA
