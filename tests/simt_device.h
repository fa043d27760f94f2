// What the tests of the host model share: memory, streams, events, launches, the fault of a launch.
#pragma once

#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "core/simt/atomic.h"
#include "core/simt/launch.h"
#include "core/simt/math.h"
#include "core/simt/warp.h"

namespace tessera::simt {

class TestStream {
 public:
  TestStream() { REQUIRE(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking) == 0); }
  ~TestStream() { cudaStreamDestroy(stream_); }
  TestStream(const TestStream&) = delete;
  operator cudaStream_t() const { return stream_; }
  void wait() {
    const cudaError_t error = cudaStreamSynchronize(stream_);  // a fault is not Catch2's
    REQUIRE(error == cudaSuccess);
  }

 private:
  cudaStream_t stream_;
};

class Event {
 public:
  explicit Event(unsigned flags = cudaEventDefault) {
    REQUIRE(cudaEventCreateWithFlags(&event_, flags) == cudaSuccess);
  }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_;
};

// n elements of device memory.
template <class T>
class Array {
 public:
  explicit Array(size_t n) : n_(n) {
    REQUIRE(cudaMalloc(reinterpret_cast<void**>(&data_), n * sizeof(T)) == cudaSuccess);
  }
  explicit Array(const std::vector<T>& values) : Array(values.size()) {
    std::memcpy(data_, values.data(), n_ * sizeof(T));  // the host model's memory is the host's
  }
  ~Array() { cudaFree(data_); }
  Array(const Array&) = delete;
  operator T*() const { return data_; }
  size_t size() const { return n_; }
  std::vector<T> values() const { return {data_, data_ + n_}; }

 private:
  size_t n_;
  T* data_ = nullptr;
};

inline void append_kernel(int* log, int what) { log[1 + log[0]++] = what; }
// Adds an entry to a log, whose first number counts them.
inline void append(cudaStream_t stream, int* log, int what) {
  launch<append_kernel>({stream, dim3(1), dim3(1)}, log, what);
}
inline std::vector<int> entries(const int* log) { return {log + 1, log + 1 + log[0]}; }

// Launches and waits.
template <auto Kernel, class... Arguments>
void run(dim3 grid, dim3 block, size_t shared_bytes, const Arguments&... arguments) {
  TestStream stream;
  launch<Kernel>({stream, grid, block, shared_bytes}, arguments...);
  stream.wait();
}

// What the fault of f() says; "" when there is none.
template <class F>
std::string fault_of(F f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}
template <auto Kernel, class... Arguments>
std::string fault_of_launch(dim3 grid, dim3 block, size_t shared_bytes,
                            const Arguments&... arguments) {
  return fault_of([&] { run<Kernel>(grid, block, shared_bytes, arguments...); });
}

// A kernel of a test file as messages name it. clang 14 leaves its template arguments out.
inline std::string kernel_text(const std::string& kernel) {
#ifdef __clang__
  return "&tessera::simt::(anonymous namespace)::" + kernel.substr(0, kernel.find('<'));
#else
  return "tessera::simt::{anonymous}::" + kernel;
#endif
}

// Calls f() under ascending, descending and several random orders.
template <class F>
void in_every_order(F f) {
  const ScopedOptions scope(options());
  for (uint64_t seed = 0; seed < 6; ++seed) {
    options().order = seed == 0 ? Order::Ascending : seed == 1 ? Order::Descending : Order::Random;
    options().landing = seed == 0   ? Landing::Earliest
                        : seed == 1 ? Landing::Latest
                                    : Landing::Random;
    options().seed = seed;
    INFO("order " << seed);
    f();
  }
}

}  // namespace tessera::simt
