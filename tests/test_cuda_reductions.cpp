// CUDA kernels that sum over blocks (kernels/cuda/last_block.h), and small ones beyond the case
// table.
#include <catch2/catch.hpp>
#include <cmath>

#include "kernels/adam.h"
#include "kernels/cuda/last_block.h"
#include "tests/cuda_devices.h"

using namespace tessera;

namespace {

constexpr int kThreads = 64;

// parts [blocks,kThreads] = twice `in`. The last block adds up all of them, each thread the numbers
// of another one, and counts itself.
void arrive_kernel(const float* in, float* parts, float* sums, int* last, unsigned* arrivals) {
  simt::ptx::begin_kernel();
  const unsigned thread = threadIdx.x, i = blockIdx.x * kThreads + thread;
  parts[i] = 2 * in[i];
  simt::__syncthreads();
  const simt::Arrival arrival(arrivals, gridDim.x);
  if (!arrival.is_last()) return;
  float sum = 0;
  for (unsigned block = 0; block < gridDim.x; ++block)
    sum += parts[block * kThreads + kThreads - 1 - thread];
  sums[thread] = sum;
  if (thread == 0) ++*last;
}

}  // namespace

TEST_CASE("one block is the last to arrive, and sees what all have written", "[cuda][small]") {
  for (simt::Order order : {simt::Order::Ascending, simt::Order::Descending, simt::Order::Random})
    for (uint64_t seed : {1, 2}) {
      const simt::ScopedOptions scope(host_model(75, order, seed));
      Stream stream(poisoned(DeviceType::simt));
      unsigned* const arrivals = simt::Arrivals::of(stream, 3);
      for (unsigned blocks : {1u, 2u, 37u, 5u}) {
        std::vector<float> in(blocks * kThreads), expected(kThreads, 0.0f);
        for (unsigned i = 0; i < in.size(); ++i) {
          in[i] = float(i % 101);
          expected[kThreads - 1 - i % kThreads] += 2 * in[i];
        }
        const Tensor from = Tensor::from<float>(stream, {int64_t(in.size())}, in);
        Tensor parts = Tensor::empty(stream, from.shape()),
               sums = Tensor::empty(stream, {kThreads}),
               last = Tensor::from<int32_t>(stream, {1}, std::vector<int32_t>{0});
        simt::launch_next<arrive_kernel>(
            {simt::cuda_stream(stream), simt::dim3(blocks), simt::dim3(kThreads), 0},
            static_cast<const float*>(from.data<float>()), parts.data<float>(), sums.data<float>(),
            last.data<int32_t>(), arrivals + 2);
        INFO(blocks << " blocks");
        CHECK(sums.to_vector<float>(stream) == expected);
        CHECK(last.to_vector<int32_t>(stream) == std::vector<int32_t>{1});
        for (int i = 0; i < 3; ++i) CHECK(arrivals[i] == 0);
      }
    }
  const auto device = poisoned(DeviceType::simt);
  Stream stream(device), other(device);
  CHECK(simt::Arrivals::of(stream, 1) != simt::Arrivals::of(other, 1));
  CHECK_THROWS_WITH(simt::Arrivals::of(stream, simt::Arrivals::kMost + 1),
                    Catch::Contains("1025 counters"));
}

TEST_CASE("the loss and the norm of gradients, again and again on one stream", "[cuda]") {
  for (DeviceType type : cuda_device_types()) {
    Stream stream(poisoned(type));
    for (int64_t i = 0; i < 40; ++i) {
      const int64_t n = 1 + i * 3271 % 20000;
      Values values{{n}, {}};
      double sum = 0;
      for (int64_t j = 0; j < n; ++j) {
        values.data.push_back(double((i + j) * j % 17));
        sum += values.data.back() * values.data.back();
      }
      Tensor loss = Tensor::empty(stream, {1}), norm = Tensor::empty(stream, {1});
      const Tensor x = tensor_of(stream, values, DType::f32);
      mse_fwd(stream, x, Tensor::zeros(stream, {n}), loss);
      grad_norm(stream, x, norm);
      INFO(name_of(type) << ' ' << n);
      CHECK(loss.to_vector<float>(stream)[0] == float(sum / double(n)));
      CHECK(norm.to_vector<float>(stream)[0] == float(std::sqrt(sum)));
    }
  }
}

TEST_CASE("Sums without elements are zero on CUDA", "[cuda]") {
  for (DeviceType type : cuda_device_types()) {
    Stream stream(poisoned(type));
    const Tensor none = Tensor::empty(stream, {0, 4, 4, 8}), gamma = Tensor::zeros(stream, {8});
    const Tensor moments = Tensor::empty(stream, {0, 2, 2});
    Tensor fresh = Tensor::empty(stream, {8}),
           kept = tensor_of(stream, {{8}, {1, 2, 3, 4, 5, 6, 7, 8}}, DType::f32);
    group_norm_bwd(stream, {2}, none, moments, gamma, none, {}, {fresh},
                   {kept, GradMode::Accumulate});
    CHECK(fresh.to_vector<float>(stream) == std::vector<float>(8, 0.0f));
    CHECK(kept.to_vector<float>(stream) == std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8});
    const Tensor no_pixels = Tensor::empty(stream, {2, 0, 4, 3});
    Tensor dt = Tensor::empty(stream, {2, 3});
    add_broadcast_bwd_t(stream, no_pixels, {dt});
    CHECK(dt.to_vector<float>(stream) == std::vector<float>(6, 0.0f));
  }
}

TEST_CASE("The mean squared error on CUDA adds many elements without losing digits", "[cuda]") {
  const simt::ScopedOptions scope(host_model(80));
  for (int64_t n : {int64_t{1} << 20, int64_t{70001}})
    for (DType storage : {DType::f32, DType::bf16})
      for (DeviceType type : cuda_device_types()) {
        INFO(name_of(type) << ' ' << name_of(storage) << ' ' << n);
        Stream stream(poisoned(type));
        const std::vector<double> zeros(size_t(n), 0.0);
        std::vector<double> errors(size_t(n), 0.1f);
        errors[0] = 1000;  // beside which the others' squares are far apart in size
        Tensor loss = Tensor::empty(stream, {1});
        mse_fwd(stream, tensor_of(stream, {{n}, zeros}, storage),
                tensor_of(stream, {{n}, errors}, DType::f32), loss);
        const double expected = (1e6 + double(n - 1) * double(0.1f) * double(0.1f)) / double(n);
        CHECK(values_of(stream, loss).data[0] == Approx(expected).epsilon(1e-7));
      }
}

TEST_CASE("The timestep embedding on CUDA equals the f64 oracle", "[cuda]") {
  const simt::ScopedOptions scope(host_model(75));
  std::vector<int32_t> steps;
  for (int32_t step = 0; step < 1000; step += 37) steps.push_back(step);
  steps.push_back(999);
  const int64_t N = int64_t(steps.size());
  for (int64_t dim : {0, 2, 6, 128})
    for (DType storage : {DType::f32, DType::bf16})
      for (DeviceType type : cuda_device_types()) {
        INFO(name_of(type) << ' ' << name_of(storage) << ' ' << dim);
        Stream stream(poisoned(type)), oracle(poisoned_cpu());
        Tensor y = Tensor::empty(stream, {N, dim}, storage),
               expected = Tensor::empty(oracle, {N, dim}, DType::f64);
        timestep_embedding_fwd(stream, Tensor::from<int32_t>(stream, {N}, steps), y);
        timestep_embedding_fwd(oracle, Tensor::from<int32_t>(oracle, {N}, steps), expected);
        CHECK(difference(values_of(stream, y), values_of(oracle, expected),
                         storage == DType::bf16 ? 1e-2 : 1e-6) == "");
      }
}
