// Columns of a matrix apart: what one product has computed for several layers. Tiny tensors.
#include <numeric>

#include "kernels/cpu/loops.h"

namespace tessera {
namespace oracle {

void split_columns_fwd(Stream&, const Tensor& x, std::span<Tensor> y) {
  const int64_t C = x.dim(1);
  for (int64_t i = 0; i < x.numel(); ++i) {
    int64_t column = i % C;
    size_t part = 0;
    while (column >= y[part].dim(1)) column -= y[part++].dim(1);
    y[part].data<double>()[i / C * y[part].dim(1) + column] = x.data<double>()[i];
  }
}

void split_columns_bwd(Stream&, std::span<const int64_t> widths, std::span<const Tensor> dy,
                       Grad dx) {
  const int64_t C = dx.tensor.dim(1);
  for (int64_t i = 0; i < dx.tensor.numel(); ++i) {
    int64_t column = i % C;
    size_t part = 0;
    while (column >= widths[part]) column -= widths[part++];
    put(dx.tensor.data<double>()[i],
        dy[part] ? dy[part].data<double>()[i / C * widths[part] + column] : 0.0, dx.mode);
  }
}

}  // namespace oracle

namespace cpu {

void split_columns_fwd(Stream&, const Tensor& x, std::span<Tensor> y) {
  with_storage(x.dtype(), [&]<class T>() {
    const T* from = x.data<T>();
    for (int64_t n = 0; n < x.dim(0); ++n)
      for (Tensor& part : y) {
        std::copy_n(from, part.dim(1), part.data<T>() + n * part.dim(1));
        from += part.dim(1);
      }
  });
}

void split_columns_bwd(Stream&, std::span<const int64_t> widths, std::span<const Tensor> dy,
                       Grad dx) {
  with_storage(dx.tensor.dtype(), [&]<class T>() {
    T* to = dx.tensor.data<T>();
    for (int64_t n = 0; n < dx.tensor.dim(0); ++n)
      for (size_t i = 0; i < widths.size(); to += widths[i++]) {
        const T* from = dy[i] ? dy[i].data<T>() + n * widths[i] : nullptr;
        put_row(to, widths[i], dx.mode, [=](int64_t j) { return from ? to_float(from[j]) : 0.0f; });
      }
  });
}

}  // namespace cpu

ON_CUDA(split_columns_bwd)
ON_CUDA(split_columns_fwd)

void split_columns_fwd(Stream& stream, const Tensor& x, std::span<Tensor> y) {
  ENSURE(x.rank() == 2, "split_columns_fwd: x is ", x.shape(), ", expected [N,C]");
  int64_t columns = 0;
  for (const Tensor& part : y) {
    ENSURE(part.rank() == 2, "split_columns_fwd: y is ", part.shape(), ", expected [N,K]");
    expect("split_columns_fwd: y", part, {x.dim(0), part.dim(1)}, x.dtype());
    columns += part.dim(1);
  }
  ENSURE(columns == x.dim(1), "split_columns_fwd: x is ", x.shape(), ", its parts have ", columns,
         " columns");
  DISPATCH(stream, x.dtype(), split_columns_fwd(stream, x, y));
}

void split_columns_bwd(Stream& stream, std::span<const int64_t> widths, std::span<const Tensor> dy,
                       Grad dx) {
  if (!dx) return;
  const Tensor& x = dx.tensor;
  ENSURE(x.rank() == 2, "split_columns_bwd: dx is ", x.shape(), ", expected [N,C]");
  ENSURE(widths.size() == dy.size(), "split_columns_bwd: ", widths.size(), " widths, ", dy.size(),
         " gradients");
  for (size_t i = 0; i < dy.size(); ++i) {
    ENSURE(widths[i] >= 0, "split_columns_bwd: a part of ", widths[i], " columns");
    expect_if("split_columns_bwd: dy", dy[i], {x.dim(0), widths[i]}, x.dtype());
  }
  const int64_t columns = std::accumulate(widths.begin(), widths.end(), int64_t{0});
  ENSURE(columns == x.dim(1), "split_columns_bwd: dx is ", x.shape(), ", its parts have ", columns,
         " columns");
  DISPATCH(stream, x.dtype(), split_columns_bwd(stream, widths, dy, dx));
}

}  // namespace tessera
