// A convolution with all of its gradients, run in any type on any device: for tests of the CUDA
// kernels.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "tests/conv_paths.h"
#include "tests/cuda_devices.h"
#include "tests/forced_tile.h"

namespace tessera::conv_runs {

struct ConvCase {
  ConvSpec spec;
  Shape x, w;
  int64_t A = 0;  // channels of x that come from a map of half its size: upcat_conv2d
  std::optional<ConvTile> tile = {};  // of halo tiles, else the rule's

  Shape y() const { return ConvProblem::of(spec, x, w).y(); }
};

inline Values part(const Values& x, int64_t first, int64_t channels) {
  const Shape& s = x.shape;
  Values y{{s[0], s[1], s[2], channels}, {}};
  for (int64_t i = 0; i < int64_t(x.data.size()); ++i)
    if (i % s[3] >= first && i % s[3] < first + channels) y.data.push_back(x.data[size_t(i)]);
  return y;
}

// dx, or dlow and dskip, y, dw, db. nan_in: "x", "low" or "dy", of which the first channel of the
// pixel in the middle is NaN, or "w", of which the first element is.
inline std::vector<Values> run(Stream& stream, const ConvCase& c, DType storage, Numbers numbers,
                               DType rounded, const std::string& nan_in = "") {
  const DType master = storage == DType::f64 ? DType::f64 : DType::f32;
  const auto input = [&](const char* name, const Shape& shape) {
    Values values = draw(numbers, name, 0, shape);
    if (rounded == DType::bf16)
      for (double& x : values.data) x = to_float(to_bf16(float(x)));
    const int64_t pixel = nan_in == "w" ? 0 : shape[1] / 2 * shape[2] + shape[2] / 2;
    if (name == nan_in) values.data[size_t(pixel * shape[3])] = std::nan("");
    return values;
  };
  const Values all_x = input("x", c.x);
  const Tensor w = tensor_of(stream, input("w", c.w), storage),
               dy = tensor_of(stream, input("dy", c.y()), storage),
               b = tensor_of(stream, draw(numbers, "b", 0, {c.w[0]}), master);
  Tensor y = Tensor::empty(stream, c.y(), storage), dw = Tensor::empty(stream, c.w, master),
         db = Tensor::empty(stream, {c.w[0]}, master);
  std::vector<Values> results;
  force_tile(stream, c.tile, c.x, c.w[0]);
  if (c.A == 0) {
    const Tensor x = tensor_of(stream, all_x, storage);
    Tensor dx = Tensor::empty(stream, c.x, storage);
    conv2d_fwd(stream, c.spec, x, w, b, y);
    conv2d_bwd_data(stream, c.spec, dy, w, {dx});
    conv2d_bwd_weight(stream, c.spec, x, dy, {dw}, {db});
    results = {values_of(stream, dx)};
  } else {
    const Shape half{c.x[0], c.x[1] / 2, c.x[2] / 2, c.A};
    const Tensor low = tensor_of(stream, input("low", half), storage),
                 skip = tensor_of(stream, part(all_x, c.A, c.x[3] - c.A), storage);
    Tensor dlow = Tensor::empty(stream, low.shape(), storage),
           dskip = Tensor::empty(stream, skip.shape(), storage);
    upcat_conv2d_fwd(stream, low, skip, w, {}, b, y);
    upcat_conv2d_bwd_data(stream, dy, w, {}, {dlow}, {dskip});
    upcat_conv2d_bwd_weight(stream, low, skip, dy, {dw}, {db});
    results = {values_of(stream, dlow), values_of(stream, dskip)};
  }
  for (const Tensor& tensor : {y, dw, db}) results.push_back(values_of(stream, tensor));
  return results;
}

// What the results of `run` are, by the oracle: activations rounded once.
inline std::vector<Values> expected(Stream& oracle, const ConvCase& c, const Path& mode) {
  std::vector<Values> results = run(oracle, c, DType::f64, Numbers::Integers, mode.dtype);
  if (mode.dtype == DType::bf16)
    for (size_t i = 0; i + 2 < results.size(); ++i)
      for (double& x : results[i].data) x = to_float(to_bf16(float(x)));
  return results;
}

// multiprocessors: 0, those of the profile; 1, for which one or two blocks of halo tiles are few.
inline std::vector<Values> on_simt(const ConvCase& c, const Path& mode, Numbers numbers,
                                   int capability, uint64_t seed, simt::Landing landing,
                                   int multiprocessors = 0) {
  simt::Options options = host_model(capability, simt::Order::Random, seed, multiprocessors);
  options.landing = landing;
  const simt::ScopedOptions scope(options);
  Stream stream(poisoned(DeviceType::simt));
  stream.math = mode.math;
  return run(stream, c, mode.dtype, numbers, mode.dtype);
}

}  // namespace tessera::conv_runs
