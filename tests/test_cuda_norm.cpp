// GroupNorm's CUDA kernels beyond the case table: large means, outliers, several tiles of an image,
// channels that do not fill a pack, gradients in place, and the same bits in whatever order blocks
// run.
#include <catch2/catch.hpp>
#include <cmath>

#include "core/simt/options.h"
#include "kernels/cuda/columns.h"
#include "kernels/image_cut.h"
#include "tests/cuda_devices.h"

using namespace tessera;

namespace {

struct NormCase {
  Shape x;
  int groups;
  bool gelu = true;          // the fused op, with t and residual
  float mean = 0;            // of x
  float first = 0;           // added to the first pixel: an outlier
  bool in_place = false;     // dx is dy, and h is x
  bool unaligned = false;    // x lies between two packs
  int unaligned_vector = 0;  // 1, 2, 3: gamma, beta or t does
  Activation act = Activation::Gelu;
};

std::string text_of(const NormCase& c) {
  return concat(c.x, " in ", c.groups, " groups", c.gelu ? concat(", ", name_of(c.act)) : "",
                ", mean ", c.mean, ", first pixel + ", c.first, c.in_place ? ", in place" : "",
                c.unaligned ? ", unaligned" : "",
                c.unaligned_vector ? concat(", unaligned vector ", c.unaligned_vector) : "");
}

// The tensors of a case: activations in `storage`, their numbers rounded to what `rounded` holds.
class NormInputs {
 public:
  NormInputs(Stream& stream, const NormCase& c, DType storage, DType rounded)
      : stream_(stream),
        storage_(storage),
        rounded_(rounded),
        name_(text_of(c)),
        unaligned_vector_(c.unaligned_vector) {
    Values values = normal(name_, c.x);
    for (double& v : values.data) v += c.mean;
    for (int64_t i = 0; i < std::min(c.x[3], c.x.numel()); ++i) values.data[size_t(i)] += c.first;
    x = put(values, storage_, rounded, c.unaligned);
  }

  Tensor activation(uint32_t number, const Shape& shape) {
    return put(draw(Numbers::Normal, name_, number, shape), storage_, rounded_, false);
  }
  Tensor t(uint32_t number, const Shape& shape) {
    return put(draw(Numbers::Normal, name_, number, shape), storage_, rounded_,
               unaligned_vector_ == int(number));
  }
  Tensor vector(uint32_t number, int64_t size) {
    return put(draw(Numbers::Normal, name_, number, {size}), master_of(storage_), DType::f32,
               unaligned_vector_ == int(number));
  }

  Tensor x;

 private:
  Tensor put(Values values, DType dtype, DType rounded, bool unaligned) {
    for (double& v : values.data)
      v = rounded == DType::bf16 ? to_float(to_bf16(float(v))) : float(v);
    return tensor_of(stream_, values, dtype, unaligned);
  }

  Stream& stream_;
  DType storage_, rounded_;
  std::string name_;
  int unaligned_vector_;
};

// y, moments, dx, dgamma, dbeta, and of the fused op dt and h, y without the residual.
using Results = std::vector<Values>;
constexpr const char* kResultNames[] = {"y", "moments", "dx", "dgamma", "dbeta", "dt", "h"};

Results run_norm(Stream& stream, const NormCase& c, DType storage, DType rounded) {
  const int64_t N = c.x[0], C = c.x[3];
  const DType master = master_of(storage);
  NormInputs in(stream, c, storage, rounded);
  const Tensor gamma = in.vector(1, C), beta = in.vector(2, C);
  const Tensor t = in.t(3, {N, C}), residual = in.activation(4, c.x);
  Tensor dy = in.activation(5, c.x);
  Tensor y = Tensor::empty(stream, c.x, storage);
  Tensor moments = Tensor::empty(stream, {N, c.groups, 2}, master);
  Tensor dx = c.in_place ? dy : Tensor::empty(stream, c.x, storage);
  Tensor dgamma = Tensor::empty(stream, {C}, master), dbeta = Tensor::empty(stream, {C}, master);
  Tensor dt = Tensor::empty(stream, {N, C}, storage);
  Tensor h = c.in_place ? in.x : Tensor::empty(stream, c.x, storage);
  const GroupNormSpec spec{c.groups};
  if (c.gelu) {
    group_norm_act_fwd(stream, {spec, c.act}, in.x, gamma, beta, t, residual, y, moments);
    group_norm_act_bwd(stream, {spec, c.act}, in.x, moments, gamma, beta, t, dy, {dx}, {dgamma},
                       {dbeta}, {dt}, h);
  } else {
    group_norm_fwd(stream, spec, in.x, gamma, beta, y, moments);
    group_norm_bwd(stream, spec, in.x, moments, gamma, dy, {dx}, {dgamma}, {dbeta});
  }
  Results results;
  for (const Tensor& tensor : {y, moments, dx, dgamma, dbeta})
    results.push_back(values_of(stream, tensor));
  if (c.gelu)
    for (const Tensor& tensor : {dt, h}) results.push_back(values_of(stream, tensor));
  return results;
}

// A mean may be off in proportion to itself and to the deviation, rstd in proportion to itself.
void check_moments(const Values& got, const Values& expected, double of_mean, double tolerance) {
  for (size_t i = 0; i < got.data.size(); i += 2) {
    INFO("group " << i / 2);
    const double mean = expected.data[i], rstd = expected.data[i + 1];
    CHECK(std::abs(got.data[i] - mean) <= of_mean * std::abs(mean) + tolerance / rstd);
    CHECK(std::abs(got.data[i + 1] - rstd) <= tolerance * rstd);
  }
}

void equals_oracle(const NormCase& c, DType storage, double tolerance) {
  Stream oracle(poisoned_cpu());
  const Results expected = run_norm(oracle, c, DType::f64, storage);
  for (DeviceType type : cuda_device_types()) {
    INFO(name_of(type) << ' ' << name_of(storage) << ' ' << text_of(c));
    Stream stream(poisoned(type));
    const Results got = run_norm(stream, c, storage, storage);
    REQUIRE(got.size() == expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
      INFO(kResultNames[i]);
      if (i == 1)
        check_moments(got[i], expected[i], 1e-7, 4e-6);
      else
        CHECK(difference(got[i], expected[i], tolerance) == "");
    }
  }
}

}  // namespace

TEST_CASE("Group norm on CUDA: tiles, packs and groups of all kinds", "[cuda]") {
  for (int capability : {75, 90}) {
    const simt::ScopedOptions scope(host_model(capability));
    for (DType storage : {DType::f32, DType::bf16})
      for (const NormCase& c :
           {NormCase{{1, 33, 31, 8}, 2},               // several tiles of an image
            {{2, 9, 7, 8}, 8},                         // a channel to a group, several to a pack
            {{1, 200, 31, 16}, 16, false},             // and many tiles, as in a BatchNorm
            {{2, 9, 7, 130}, 2, false},                // 65 to a group
            {{1, 3, 4, 325}, 5},                       // and groups across the blocks of a tile
            {{3, 1, 1, 64}, 8},                        // images of one pixel
            {{5, 1, 1, 65}, 1, false},                 //
            {{134, 17, 41, 3}, 1, false, 0, 0, true},  // many pixels to a thread, threads past
                                                       // whole rows
            {{2, 6, 5, 24}, 3, true, 0, 0, true},      // dx in the place of dy
            {{2, 6, 5, 32}, 4, true, 0, 0, false, true},
            {{2, 6, 5, 32}, 4, false, 0, 0, false, true},
            {{2, 6, 5, 32}, 4, true, 0, 0, false, false, 1},
            {{2, 6, 5, 32}, 4, true, 0, 0, false, false, 2},
            {{2, 6, 5, 32}, 4, true, 0, 0, false, false, 3}})
        equals_oracle(c, storage, storage == DType::bf16 ? 1e-2 : 1e-5);
  }
}

TEST_CASE("Group norm on CUDA: a GPU so small that threads have many pixels", "[cuda]") {
  for (int capability : {89, 90}) {
    simt::Options options = host_model(capability);
    options.profile.multiprocessors = 1;
    const simt::ScopedOptions scope(options);
    for (DType storage : {DType::f32, DType::bf16})
      for (const NormCase& c : {NormCase{{2, 23, 29, 64}, 8},
                                {{1, 41, 37, 16}, 2, false},
                                {{3, 19, 23, 21}, 3},
                                {{1, 13, 17, 264}, 8, true, 0, 0, true}})
        equals_oracle(c, storage, storage == DType::bf16 ? 1e-2 : 1e-5);
  }
}

TEST_CASE("Group norm on CUDA by images", "[cuda]") {
  const simt::ScopedOptions scope(host_model(90));
  for (const NormCase& c : {NormCase{{1, 37, 29, 64}, 8},             // a last part of fewer pixels
                            {{2, 3, 3, 8}, 2},                        // threads without a pixel
                            {{1, 9, 9, 2048}, 32},                    // 64 channels to a group
                            {{2, 5, 3, 2056}, 1},                     // 2056, parts of few pixels,
                            {{1, 2, 3, 4104}, 1},                     // and more than threads have
                            {{3, 4, 5, 40}, 20},                      // groups that share packs
                            {{2, 3, 7, 120}, 5, true, 0, 0, true},    // groups of three packs
                            {{9, 11, 13, 72}, 9},                     // a last block with less
                            {{1, 64, 64, 64}, 8},                     // the lesson's largest,
                            {{70, 20, 20, 16}, 2},                    // an image a block,
                            {{33, 32, 32, 16}, 2},                    // in four parts,
                            {{34, 45, 46, 16}, 1, true, 0, 0, true},  // two, of 512 threads
                            {{2, 1, 1, 40000}, 1250},  // more blocks of channels than counters
                            {{1, 96, 96, 8}, 1, true, 0, 0, true},
                            {{1, 140, 140, 16}, 1, true, 0, 0, true},  // h by a pass of its own
                            {{1, 330, 330, 8}, 2, true, 0, 0, true}})  // too large: by tiles
    equals_oracle(c, DType::bf16, 1e-2);
}

TEST_CASE("Group norm on CUDA by images in blocks of 512 threads", "[cuda]") {
  simt::Options options = host_model(90);
  options.profile.multiprocessors = 1;  // for which one part is enough
  const simt::ScopedOptions scope(options);
  for (const Activation act : {Activation::Gelu, Activation::GeluTanh, Activation::Relu}) {
    NormCase c{{1, 61, 63, 16}, 2};
    c.act = act;
    equals_oracle(c, DType::bf16, 1e-2);
  }
  equals_oracle({{1, 61, 63, 16}, 2, false}, DType::bf16, 1e-2);
}

TEST_CASE("Group norm on CUDA by images, small", "[cuda][small]") {
  const simt::ScopedOptions scope(host_model(90));
  for (const NormCase& c : {NormCase{{1, 15, 20, 8}, 2},  // two parts
                            {{2, 3, 5, 24}, 3, true, 0, 0, true}})
    equals_oracle(c, DType::bf16, 1e-2);
}

TEST_CASE("Images are cut into what blocks can hold", "[cuda]") {
  const auto cut = [](const Shape& x, int tensors, int groups = 8, int capability = 90) {
    const DeviceInfo info{"", capability, 132, size_t{227} << 10, 0};
    const auto c = ImageCut::of(info, x, DType::bf16, groups, tensors);
    if (!c) return std::vector<int>{};
    INFO(x << ", " << tensors << " tensors");
    const int64_t P = x[1] * x[2];
    CHECK(int64_t(c->parts) * c->pixels >= P);
    CHECK(int64_t(c->parts - 1) * c->pixels < P);
    CHECK(c->slots * c->rows == c->pixels);
    CHECK(c->rows * c->cols <= c->threads);
    CHECK((c->cols * 8 % (x[3] / groups) == 0 || c->cols * 8 == x[3]));
    CHECK(c->shared_bytes <= info.shared_per_block);
    // A multiprocessor has 1 KB more, and takes 1 KB for each block.
    if (c->threads == 256) CHECK(2 * (c->shared_bytes + 1024) <= info.shared_per_block + 1024);
    return std::vector<int>{c->cols * 8, c->parts, c->threads};
  };
  using Cut = std::vector<int>;  // channels, parts, threads
  // The lesson's, forward and back: two parts at 64x64 on the way back, one elsewhere.
  CHECK(cut({32, 64, 64, 64}, 1) == Cut{16, 1, 512});
  CHECK(cut({32, 64, 64, 64}, 3) == Cut{16, 2, 512});
  CHECK(cut({32, 32, 32, 128}, 1) == Cut{32, 1, 512});
  CHECK(cut({32, 32, 32, 128}, 3) == Cut{32, 1, 512});
  CHECK(cut({32, 16, 16, 256}, 3) == Cut{32, 1, 256});
  CHECK(cut({32, 8, 8, 512}, 3) == Cut{64, 1, 256});
  CHECK(cut({128, 64, 64, 64}, 3) == Cut{16, 2, 512});
  // Few images: more parts, to have more blocks.
  CHECK(cut({1, 64, 64, 64}, 1) == Cut{16, 8, 512});
  CHECK(cut({1, 63, 64, 64}, 1) == Cut{16, 8, 256});  // less than two pixels a thread
  CHECK(cut({8, 32, 32, 128}, 3) == Cut{16, 2, 512});
  CHECK(cut({1, 1, 1, 8}, 2, 1) == Cut{8, 1, 256});
  CHECK(cut({1, 8, 8, 24}, 1, 1) == Cut{24, 1, 256});
  CHECK(cut({300, 57, 57, 16}, 1, 1) == Cut{16, 1, 256});
  CHECK(cut({300, 58, 58, 16}, 1, 1) == Cut{16, 1, 512});
  // The largest, and what is not for this.
  CHECK(cut({1, 128, 128, 64}, 3) == Cut{16, 8, 512});
  CHECK(cut({1, 140, 140, 64}, 3).empty());
  CHECK(cut({1, 140, 140, 64}, 1) == Cut{16, 8, 512});
  CHECK(cut({133, 32, 32, 32}, 1) == Cut{32, 1, 256});
  CHECK(cut({132, 32, 32, 32}, 1) == Cut{32, 1, 512});
  CHECK(cut({1, 64, 64, 1024}, 3).empty());
  CHECK(cut({1, 1, 1, 4104}, 1, 1).empty());
  CHECK(cut({1, 8, 8, 12}, 1, 1).empty());
  CHECK(cut({0, 8, 8, 16}, 1).empty());
  CHECK(cut({32, 64, 64, 64}, 1, 8, 89).empty());
  CHECK_FALSE(ImageCut::of({"", 90, 132, size_t{227} << 10, 0}, {1, 8, 8, 8}, DType::f32, 8, 1));
}

TEST_CASE("Tiles of columns cover all pixels, in one wave where they can", "[cuda]") {
  const simt::ScopedOptions scope(host_model(90));  // 132 multiprocessors
  Stream stream(Device::open(DeviceType::simt));
  const auto tiles = [&](const Shape& shape, int resident, int longest) {
    const Tensor x = Tensor::empty(stream, shape, DType::bf16);
    const simt::Tiling t = simt::tiling_of(stream, x, 8, resident, longest);
    INFO(shape << ", " << resident << " blocks a multiprocessor, " << longest << " pixels");
    CHECK(int64_t(t.slices) * t.pixels >= t.P);
    CHECK(int64_t(t.slices - 1) * t.pixels < t.P);
    CHECK(t.pixels <= longest * t.rows);
    return int64_t(t.grid().x) * t.grid().y;
  };
  for (const int resident : {3, 4})
    for (const Shape& shape :
         {Shape{32, 64, 64, 64}, {32, 32, 32, 128}, {32, 16, 16, 256}, {32, 8, 8, 512}}) {
      const int64_t blocks = tiles(shape, resident, 16);
      CHECK(blocks <= 132 * resident);
      CHECK(blocks >= 132 * resident / 2);
    }
  // A wave has 396. 32 images of up to 12 tiles of 11 times 32 pixels; where a thread may have 8
  // pixels only, two waves of 6 pixels and not of 8, which end later.
  CHECK(tiles({32, 64, 64, 64}, 3, 16) == 32 * 12);
  CHECK(tiles({32, 64, 64, 64}, 3, 8) == 32 * 22);
  // Just a wave of single pixels, and an image more: two pixels to a thread.
  CHECK(tiles({396, 1, 32, 64}, 3, 16) == 396);
  CHECK(tiles({198, 2, 32, 64}, 3, 16) == 396);
  CHECK(tiles({199, 2, 32, 64}, 3, 16) == 199);
}

TEST_CASE("Group norm on CUDA keeps its precision beside a large mean", "[cuda]") {
  const NormCase cases[] = {{{1, 33, 31, 8}, 2, false, 1000},
                            {{2, 9, 7, 65}, 1, true, 1000},
                            {{2, 16, 16, 16}, 16, true, -1000},
                            {{1, 200, 31, 16}, 16, false, 1000},
                            {{2, 20, 20, 8}, 2, false, 0, 3000}};
  for (const NormCase& c : cases) {
    // The moments hold the mean as a float, off by half a unit of its last place: so much is x, of
    // deviation 1, off in the output, and up to a few times that where gamma or dy is large.
    const double ulp = c.mean == 0 ? 0 : std::ldexp(1.0, std::ilogb(c.mean) - 23);
    const simt::ScopedOptions scope(host_model(80));
    equals_oracle(c, DType::f32, 1e-5 + 4 * ulp);
    equals_oracle(c, DType::bf16, 1e-2);
    simt::options().profile = simt::profile_of(90);
    equals_oracle(c, DType::bf16, 1e-2);
  }
}

TEST_CASE("Group norm on CUDA gives the same bits in whatever order blocks run", "[cuda]") {
  for (const NormCase& c :
       {NormCase{{2, 33, 31, 8}, 2}, {{3, 5, 3, 21}, 7, false}, {{37, 3, 4, 16}, 2}})
    for (const auto& [capability, storage] :
         {std::pair(75, DType::f32), {90, DType::f32}, {90, DType::bf16}}) {
      Results first;
      for (simt::Order order :
           {simt::Order::Ascending, simt::Order::Descending, simt::Order::Random})
        for (uint64_t seed : {1, 2}) {
          const simt::ScopedOptions scope(host_model(capability, order, seed));
          Stream stream(poisoned(DeviceType::simt));
          const Results again = run_norm(stream, c, storage, storage);
          if (first.empty()) first = again;
          for (size_t i = 0; i < first.size(); ++i) {
            INFO(text_of(c) << ' ' << kResultNames[i] << " on " << capability);
            CHECK(again[i].data == first[i].data);
          }
        }
    }
}

TEST_CASE("Group norm on CUDA computes only the gradients that are wanted", "[cuda]") {
  const simt::ScopedOptions scope(host_model(90));
  const auto check = [](DeviceType type, const NormCase& c, DType storage) {
    const int64_t N = c.x[0], C = c.x[3];
    Stream stream(poisoned(type));
    const Results all = run_norm(stream, c, storage, storage);
    NormInputs in(stream, c, storage, storage);
    const Tensor gamma = in.vector(1, C), beta = in.vector(2, C), t = in.activation(3, {N, C}),
                 dy = in.activation(5, c.x), moments = tensor_of(stream, all[1], DType::f32);
    for (unsigned wanted = 1; wanted < 16; ++wanted) {  // a bit for each of dx, dgamma, dbeta, dt
      Grad grads[6];
      for (size_t i = 2; i < 6; ++i)
        if (wanted >> (i - 2) & 1)
          grads[i].tensor =
              Tensor::empty(stream, all[i].shape, i == 3 || i == 4 ? master_of(storage) : storage);
      group_norm_act_bwd(stream, {{c.groups}}, in.x, moments, gamma, beta, t, dy, grads[2],
                         grads[3], grads[4], grads[5]);
      for (size_t i = 2; i < 6; ++i) {
        INFO(kResultNames[i] << " of " << wanted);
        if (grads[i]) CHECK(values_of(stream, grads[i].tensor).data == all[i].data);
      }
    }
  };
  for (DeviceType type : cuda_device_types()) {
    check(type, {{2, 5, 4, 12}, 3}, DType::f32);
    check(type, {{1, 3, 4, 325}, 5}, DType::f32);  // several blocks of channels
    check(type, {{2, 5, 4, 16}, 2}, DType::bf16);
  }
}

TEST_CASE("a cut of an image at its limits", "[cuda]") {
  const auto cut = [](const Shape& x, int64_t groups, int multiprocessors, size_t shared,
                      int tensors) {
    const DeviceInfo info{"", 90, multiprocessors, shared, 0};
    return ImageCut::of(info, x, DType::bf16, groups, tensors);
  };
  constexpr size_t kShared = size_t{227} << 10;
  // Half of the multiprocessors busy is too few, more is enough.
  CHECK(cut({2, 16, 16, 16}, 2, 4, kShared, 1)->parts == 2);
  CHECK(cut({2, 16, 16, 16}, 2, 3, kShared, 1)->parts == 1);
  // A thread of its own for each pack, and no more packs than threads.
  CHECK(cut({1, 2, 2, 4096}, 1, 132, kShared, 1)->threads == 512);
  CHECK_FALSE(cut({1, 2, 2, 8192}, 1, 132, kShared, 1));
  // Two blocks share what a multiprocessor has, 1 KB of it each unseen.
  const size_t bytes = cut({8, 8, 8, 8}, 2, 4, kShared, 1)->shared_bytes;
  CHECK(cut({8, 8, 8, 8}, 2, 4, 2 * bytes + 1024, 1)->threads == 256);
  const auto tight = cut({8, 8, 8, 8}, 2, 4, 2 * bytes + 1022, 1);
  CHECK((!tight || tight->threads == 512));
}
