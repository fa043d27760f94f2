// Sums of parts (kernels/cuda/sum_parts.h): however they are cut, aligned and laid out.
#include <catch2/catch.hpp>

#include "kernels/cuda/sum_parts.h"
#include "tests/cuda_devices.h"

using namespace tessera;

namespace {

// A sum of `parts` into rows of `length`, `stride` apart; all addresses are `shift` elements off.
struct SumCase {
  int64_t parts, rows, length, stride, shift = 0;
};

// Small integers, of which all sums are exact.
std::vector<float> integers(int64_t size) {
  std::vector<float> values;
  for (int64_t i = 0; i < size; ++i) values.push_back(float(i * i % 13 - 6));
  return values;
}

class Sum {
 public:
  Sum(Stream& stream, const SumCase& c, GradMode mode) : c_(c), mode_(mode) {
    const int64_t size = c.rows * c.length, reach = c.rows * c.stride;
    const std::vector<float> partial = integers(c.parts * size + c.shift);
    expected_ = integers(reach + c.shift);
    out_ = Tensor::from<float>(stream, {reach + c.shift}, expected_);
    partial_ = Tensor::from<float>(stream, {c.parts * size + c.shift}, partial)
                   .slice(c.shift, {c.parts, size});
    for (int64_t i = 0; i < size; ++i) {
      float& sum = expected_[size_t(c.shift + i / c.length * c.stride + i % c.length)];
      if (mode == GradMode::Overwrite) sum = 0;
      for (int64_t part = 0; part < c.parts; ++part)
        sum += partial[size_t(c.shift + part * size + i)];
    }
  }
  simt::SumParts parts() {
    return simt::parts_of(partial_, out_.data<float>() + c_.shift, c_.length, c_.stride, mode_);
  }
  // Of all that out has, also between its rows.
  void check(Stream& stream) const {
    INFO(c_.parts << " parts of " << c_.rows << " x " << c_.length << " to rows of " << c_.stride
                  << ", shifted by " << c_.shift);
    CHECK(out_.to_vector<float>(stream) == expected_);
  }

 private:
  SumCase c_;
  GradMode mode_;
  Tensor partial_, out_;
  std::vector<float> expected_;
};

// Cut into 1 to 64 ranges, of which the last one has some of its parts or none; outputs of one
// block and of more; by packs and, where those do not fit, one by one.
const SumCase kCases[] = {{1, 1, 1, 1},     {1, 1, 8, 8},      {2, 1, 4, 4},    {3, 1, 1028, 1028},
                          {4, 2, 6, 9},     {5, 1, 1, 1},      {7, 3, 12, 20},  {9, 1, 513, 513},
                          {33, 5, 8, 8},    {40, 1, 520, 520}, {127, 1, 1, 1},  {300, 9, 20, 36},
                          {515, 1, 64, 64}, {8, 1, 64, 64, 1}, {20, 3, 4, 8, 2}};
constexpr GradMode kModes[] = {GradMode::Overwrite, GradMode::Accumulate};

void check_alone(const SumCase& c) {
  on_host_model([&](Stream& stream) {
    for (const GradMode mode : kModes) {
      Sum sum(stream, c, mode);
      simt::sum_parts(stream, sum.parts());
      sum.check(stream);
    }
  });
}

}  // namespace

TEST_CASE("sums of parts", "[cuda][small]") {
  for (const SumCase& c : kCases) check_alone(c);
}

TEST_CASE("a sum of parts by many blocks", "[cuda]") { check_alone({9, 1, 70001, 70001}); }

TEST_CASE("two sums of parts at once", "[cuda][small]") {
  on_host_model([](Stream& stream) {
    for (const auto& [first, second] :
         {std::pair(SumCase{128, 6, 96, 120}, SumCase{128, 1, 64, 64}),
          {{2, 1, 5000, 5000}, {515, 1, 40, 40}},  // each is cut in its own way
          {{515, 1, 40, 40}, {2, 1, 5000, 5000}},
          {{32, 1, 64, 64}, {32, 1, 1, 1}},  // no packs
          {{32, 1, 3, 3}, {32, 1, 64, 64, 1}}})
      for (const GradMode mode : kModes) {
        Sum a(stream, first, mode), b(stream, second, GradMode::Overwrite);
        simt::sum_parts(stream, a.parts(), b.parts());
        a.check(stream), b.check(stream);
      }
  });
}

TEST_CASE("a sum of parts that is not wanted", "[cuda][small]") {
  on_host_model([](Stream& stream) {
    Sum sum(stream, {17, 1, 12, 12}, GradMode::Overwrite);
    const simt::SumParts none = simt::parts_of(Tensor(), Grad());
    simt::sum_parts(stream, none);
    simt::sum_parts(stream, none, none);
    simt::sum_parts(stream, sum.parts(), none);
    sum.check(stream);
    Sum alone(stream, {17, 1, 12, 12}, GradMode::Accumulate);
    simt::sum_parts(stream, none, alone.parts());
    alone.check(stream);
  });
}
