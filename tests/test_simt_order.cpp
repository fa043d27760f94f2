// check_order: results that depend on the order of threads, blocks, streams or graph nodes.
#include "core/simt/order_check.h"

#include "tests/simt_device.h"

namespace tessera::simt {
namespace {

// Each thread takes its neighbour's value. Broken: without waiting for it.
template <bool broken>
void rotate_kernel(int* out) {
  auto& values = shared_memory<int[64]>();
  values[threadIdx.x] = int(threadIdx.x);
  if (!broken) __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = values[(threadIdx.x + 1) % 64];
}

// Broken: the last block to run wins.
template <bool broken>
void maximum_kernel(int* out) {
  if (threadIdx.x != 5) return;
  if (broken)
    *out = int(blockIdx.x);
  else
    atomicMax(out, int(blockIdx.x));
}

// Broken: the order of the sum is that of the blocks. CUDA's atomicAdd on floats does this.
template <bool broken>
void float_sum_kernel(float* out) {
  if (broken)
    *out += 1.0f / float(1 + blockIdx.x);
  else
    out[1 + blockIdx.x] = 1.0f / float(1 + blockIdx.x);
}

void count_kernel(int* out, int by) { *out = *out * 3 + by; }

// The fault of check_order names kernel, block and thread of both orders.
void check_message(const std::string& message, const std::string& kernel, const char* pattern) {
  CHECK_THAT(message, Catch::Contains("order dependence: byte "));
  const std::string written = concat("written by kernel ", kernel_text(kernel));
  const size_t first = message.find(written), second = message.rfind(written);
  CHECK(first != std::string::npos);
  INFO(message);
  CHECK(first != second);
  CHECK_THAT(message, Catch::Contains(pattern));
}

}  // namespace

TEST_CASE("order of threads: a missing barrier", "[simt][race]") {
  Array<int> other(10), out(std::vector<int>(128, -1));
  const auto work = [&](auto broken) {
    return [&, broken] {
      TestStream stream;
      launch<rotate_kernel<broken.value>>({stream, dim3(2), dim3(64), 256}, out);
    };
  };
  check_order(work(std::false_type{}));
  CHECK(out[64 + 63] == 0);
  check_message(fault_of([&] { check_order(work(std::true_type{})); }), "rotate_kernel<true>",
                "block (0,0,0), thread (0,0,0), before its end");
}

TEST_CASE("order of blocks", "[simt][race]") {
  Array<int> out(std::vector{-1});
  const auto work = [&](auto broken) {
    return [&, broken] {
      TestStream stream;
      launch<maximum_kernel<broken.value>>({stream, dim3(40), dim3(32)}, out);
    };
  };
  check_order(work(std::false_type{}));
  CHECK(out[0] == 39);
  out[0] = -1;
  const auto message = fault_of([&] { check_order(work(std::true_type{})); });
  check_message(message, "maximum_kernel<true>", "block (39,0,0), thread (5,0,0)");
  CHECK_THAT(message, Catch::Contains("block (0,0,0), thread (5,0,0)"));
}

TEST_CASE("order of a sum of floats", "[simt][race]") {
  Array<float> sum(std::vector<float>(41));
  const auto work = [&](auto broken) {
    return [&, broken] {
      TestStream stream;
      launch<float_sum_kernel<broken.value>>({stream, dim3(40), dim3(1)}, sum);
    };
  };
  check_order(work(std::false_type{}));
  check_message(fault_of([&] { check_order(work(std::true_type{})); }), "float_sum_kernel<true>",
                "thread (0,0,0)");
}

TEST_CASE("order of streams: a missing event", "[simt][race]") {
  Array<int> x(std::vector{1});
  TestStream a, b;
  cudaEvent_t event;
  REQUIRE(cudaEventCreate(&event) == cudaSuccess);
  const auto work = [&](bool broken) {
    return [&, broken] {
      launch<count_kernel>({a, dim3(1), dim3(1)}, x, 1);
      cudaEventRecord(event, a);
      if (!broken) cudaStreamWaitEvent(b, event);
      launch<count_kernel>({b, dim3(1), dim3(1)}, x, 2);
    };
  };
  check_order(work(false));
  CHECK(x[0] == 14);
  CHECK_THAT(fault_of([&] { check_order(work(true)); }), Catch::Contains("order dependence"));
  cudaEventDestroy(event);
}

TEST_CASE("order of copies into pinned memory", "[simt][race]") {
  Array<int> x(std::vector{1}), y(std::vector{2});
  TestStream a, b;
  int* pinned = nullptr;
  REQUIRE(cudaMallocHost(reinterpret_cast<void**>(&pinned), 8) == cudaSuccess);
  const auto work = [&](int apart) {
    return [&, apart] {
      cudaMemcpyAsync(pinned, x, 4, cudaMemcpyDeviceToHost, a);
      cudaMemcpyAsync(pinned + apart, y, 4, cudaMemcpyDeviceToHost, b);
    };
  };
  check_order(work(1));
  CHECK((pinned[0] == 1 && pinned[1] == 2));
  CHECK_THAT(fault_of([&] { check_order(work(0)); }),
             Catch::Contains("order dependence: byte 0 of an allocation of 8 bytes is 0x2 in "
                             "ascending order (written by a copy or memset) and 0x1 in"));
  CHECK(cudaFreeHost(pinned) == cudaSuccess);
}

TEST_CASE("memory is left as the ascending order makes it", "[simt]") {
  Array<int> x(std::vector{1});
  TestStream stream;
  check_order([&] { launch<count_kernel>({stream, dim3(1), dim3(1)}, x, 5); });
  CHECK(x[0] == 8);
}

}  // namespace tessera::simt
