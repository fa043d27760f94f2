// Layout, pooling, broadcast and concat kernels where the case table does not come: one gradient of
// two, and tensors that are slices at addresses which allow no packs.
#include <catch2/catch.hpp>

#include "core/simt/options.h"
#include "kernels/kernels.h"
#include "tests/op_runner.h"

using namespace tessera;

namespace {

// Every function once; the outputs, of which only one part's gradients if `part` is 0 or 1.
std::vector<Values> outputs(DeviceType type, DType dtype, int64_t shift, int part) {
  Stream stream(poisoned(type));
  const Shape low{2, 3, 5, 8}, up{2, 6, 10, 8}, skip{2, 6, 10, 16}, joint{2, 6, 10, 24};
  const Shape quarter{2, 3, 5, 32};
  std::vector<Tensor> results;
  const auto input = [&](const std::string& name, const Shape& shape, DType as) {
    return tensor_of(stream, draw(Numbers::Integers, name, 0, shape), as, shift);
  };
  const auto in = [&](const std::string& name, const Shape& shape) {
    return input(name, shape, dtype);
  };
  const auto out = [&](const Shape& shape) {
    results.push_back(in(concat("out ", results.size()), shape));
    return results.back();
  };
  const auto grad = [&](int which, const Shape& shape) {
    if (part >= 0 && part != which) return Grad{};
    return Grad{out(shape), which == 0 ? GradMode::Accumulate : GradMode::Overwrite};
  };
  space_to_channel(stream, in("x", up), {out(quarter), GradMode::Accumulate});
  channel_to_space(stream, in("q", quarter), {out(up), GradMode::Accumulate});
  Tensor y = out(up), joined = out(joint), fused = out(joint);
  upsample_nearest_fwd(stream, in("low", low), y);
  upsample_nearest_bwd(stream, in("dy", up), {out(low), GradMode::Overwrite});
  for (Pooling pooling : {Pooling::Max, Pooling::Average}) {
    Tensor pooled = out(low);
    pool_fwd(stream, pooling, in("x", up), pooled);
    for (GradMode mode : {GradMode::Overwrite, GradMode::Accumulate})
      pool_bwd(stream, pooling, in("x", up), in("dlow", low), {out(up), mode});
  }
  for (DType of_t : {dtype, master_of(dtype)}) {
    Tensor sum = out(up);
    add_broadcast_fwd(stream, in("x", up), input("t", {2, 8}, of_t), sum);
  }
  concat_channels_fwd(stream, in("a", up), in("b", skip), joined);
  concat_channels_bwd(stream, in("dy", joint), grad(0, up), grad(1, skip));
  concat_upsample_fwd(stream, in("low", low), in("skip", skip), fused);
  concat_upsample_bwd(stream, in("dy", joint), grad(0, low), grad(1, skip));
  std::vector<Values> values;
  for (const Tensor& tensor : results) values.push_back(values_of(stream, tensor));
  return values;
}

}  // namespace

TEST_CASE(
    "layout, pooling, broadcast and concat kernels at any address, and with one gradient of two",
    "[cuda]") {
  const simt::ScopedOptions restore(simt::options());
  simt::options().trap_uninitialised = true;
  for (int part : {-1, 0, 1}) {
    const std::vector<Values> expected = outputs(DeviceType::cpu, DType::f64, 0, part);
    for (DType dtype : {DType::f32, DType::bf16})
      for (int64_t shift : {0, 1, 2}) {
        INFO("part " << part << ' ' << name_of(dtype) << " shift " << shift);
        const std::vector<Values> got = outputs(DeviceType::simt, dtype, shift, part);
        REQUIRE(got.size() == expected.size());
        for (size_t i = 0; i < got.size(); ++i) {
          INFO("output " << i);
          CHECK(difference(got[i], expected[i], 0) == "");  // small integers
        }
      }
  }
}
