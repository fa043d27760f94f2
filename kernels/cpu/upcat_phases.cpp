// The sub-pixel form of filters: see upcat_conv2d.cpp.
#include "kernels/cpu/loops.h"

namespace tessera {
namespace {

// The taps first .. last of a 3x3 filter's row (or column) that tap u of parity p sums.
struct Taps {
  int first, last;
};
Taps taps_of(int p, int u) { return {u == 0 ? 0 : 1 + p, u == 1 ? 2 : p}; }

}  // namespace

namespace oracle {
namespace {

void sum_phases(const Tensor& w, Tensor phases) {
  const int64_t C = w.dim(3), A = phases.dim(3);
  for (int64_t i = 0; i < w.dim(0) * 16; ++i) {
    const Taps rows = taps_of(int(i / 8 % 2), int(i / 2 % 2)),
               columns = taps_of(int(i / 4 % 2), int(i % 2));
    for (int64_t a = 0; a < A; ++a) {
      double sum = 0;
      for (int r = rows.first; r <= rows.last; ++r)
        for (int s = columns.first; s <= columns.last; ++s)
          sum += w.data<double>()[(i / 16 * 9 + 3 * r + s) * C + a];
      phases.data<double>()[i * A + a] = sum;
    }
  }
}

}  // namespace

void upcat_phases(Stream&, std::span<const PhasedFilter> filters) {
  for (const PhasedFilter& f : filters) sum_phases(f.w, f.phases);
}

}  // namespace oracle

namespace cpu {
namespace {

// One tap of a parity's filter, over n channels: the sum of 1, 2 or 4 taps of the 3x3 filter.
template <class From, class To>
void sum_taps(const From* filter, const Taps& rows, const Taps& columns, int64_t C, int64_t n,
              To* to) {
  const From* taps[4] = {};
  int count = 0;
  for (int r = rows.first; r <= rows.last; ++r)
    for (int s = columns.first; s <= columns.last; ++s) taps[count++] = filter + (3 * r + s) * C;
  const auto put = [&](auto value) { put_row(to, n, GradMode::Overwrite, value); };
  const From *a = taps[0], *b = taps[1], *c = taps[2], *d = taps[3];
  if (count == 1) return put([=](int64_t i) { return to_float(a[i]); });
  if (count == 2) return put([=](int64_t i) { return to_float(a[i]) + to_float(b[i]); });
  put([=](int64_t i) { return to_float(a[i]) + to_float(b[i]) + to_float(c[i]) + to_float(d[i]); });
}

template <class From, class To>
void sum_phases(const Tensor& w, Tensor phases) {
  const int64_t C = w.dim(3), A = phases.dim(3);
  const From* from = w.data<From>();
  To* to = phases.data<To>();
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < w.dim(0) * 16; ++i)
    sum_taps(from + i / 16 * 9 * C, taps_of(int(i / 8 % 2), int(i / 2 % 2)),
             taps_of(int(i / 4 % 2), int(i % 2)), C, A, to + i * A);
}

}  // namespace

void upcat_phases(Stream&, std::span<const PhasedFilter> filters) {
  for (const PhasedFilter& f : filters)
    with_storage(f.w.dtype(), [&]<class From>() {
      with_storage(f.phases.dtype(), [&]<class To>() { sum_phases<From, To>(f.w, f.phases); });
    });
}

}  // namespace cpu

ON_CUDA(upcat_phases)

void upcat_phases(Stream& stream, std::span<const PhasedFilter> filters) {
  if (filters.empty()) return;
  const DType from = filters[0].w.dtype();
  for (const auto& [w, phases] : filters) {
    ENSURE(w.shape().rank() == 4 && w.dim(1) == 3 && w.dim(2) == 3, "upcat_phases: w is ",
           w.shape(), ", expected 3x3");
    ENSURE(phases.shape().rank() == 4 && phases.dim(3) <= w.dim(3), "upcat_phases: phases is ",
           phases.shape(), ", w is ", w.shape());
    const bool as_w = stream.device().type() == DeviceType::cpu &&
                      (from == DType::f64 || phases.dtype() == DType::f32);
    expect("upcat_phases: w", w, w.shape(), from);
    expect("upcat_phases: phases", phases, {w.dim(0), 4, 4, phases.dim(3)},
           as_w ? from : DType::bf16);
  }
  DISPATCH(stream, from, upcat_phases(stream, filters));
}

}  // namespace tessera
