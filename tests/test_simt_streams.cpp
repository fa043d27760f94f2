// The host model's streams and events: order within a stream, freedom between streams, late work,
// errors that nobody has asked for yet.
#include <map>
#include <numeric>
#include <set>

#include "tests/simt_device.h"

namespace tessera::simt {
namespace {

void store_kernel(int* to, int value) { *to = value; }
void copy_kernel(int* to, const int* from) { *to = *from; }
void failing_kernel() { fault("told to fail"); }

}  // namespace

TEST_CASE("work of one stream is done in its order", "[simt]") {
  in_every_order([] {
    TestStream stream;
    Array<int> log(std::vector<int>(40));
    for (int i = 0; i < 20; ++i) append(stream, log, i);
    stream.wait();
    std::vector<int> expected(20);
    std::iota(expected.begin(), expected.end(), 0);
    CHECK(entries(log) == expected);
  });
}

TEST_CASE("work is done as late as somebody waits, at once, or between", "[simt][race]") {
  const ScopedOptions scope(options());
  std::set<int> seen;
  for (const Landing landing : {Landing::Latest, Landing::Earliest, Landing::Random})
    for (uint64_t seed = 0; seed < 40; ++seed) {
      options().landing = landing;
      options().seed = seed;
      TestStream stream;
      Array<int> log(std::vector<int>(40));
      for (int i = 0; i < 10; ++i) append(stream, log, i);
      if (landing == Landing::Latest) CHECK(log[0] == 0);
      if (landing == Landing::Earliest) CHECK(log[0] == 10);
      if (landing == Landing::Random) seen.insert(log[0]);
      stream.wait();
      CHECK(log[0] == 10);
    }
  CHECK(seen.size() > 2);
}

TEST_CASE("streams interleave by a seeded choice", "[simt][race]") {
  const ScopedOptions scope(options());
  options().order = Order::Random;
  options().landing = Landing::Random;
  const auto order_of = [](uint64_t seed) {
    options().seed = seed;
    TestStream a, b;
    Array<int> log(std::vector<int>(40));
    for (int i = 0; i < 10; ++i) append(i % 2 ? b : a, log, i);
    cudaDeviceSynchronize();
    auto order = entries(log);
    for (int odd : {0, 1}) {  // each stream's own work is in order
      std::vector<int> mine;
      for (int i : order)
        if (i % 2 == odd) mine.push_back(i);
      CHECK(mine == (odd ? std::vector<int>{1, 3, 5, 7, 9} : std::vector<int>{0, 2, 4, 6, 8}));
    }
    return order;
  };
  order_of(1000);
  std::set<std::vector<int>> orders;
  std::map<uint64_t, std::vector<int>> of_seed;
  for (uint64_t seed = 0; seed < 20; ++seed) orders.insert(of_seed[seed] = order_of(seed));
  CHECK(orders.size() > 5);
  order_of(1000);  // the sequence starts anew when the seed changes
  for (uint64_t seed = 20; seed-- > 0;) CHECK(order_of(seed) == of_seed[seed]);
}

TEST_CASE("waiting for a stream does nothing of another, at the latest landing", "[simt][race]") {
  const ScopedOptions scope(options());
  options().landing = Landing::Latest;
  TestStream a, b;
  Array<int> x(std::vector{0}), y(std::vector{0});
  launch<store_kernel>({a, dim3(1), dim3(1)}, x, 1);
  launch<store_kernel>({b, dim3(1), dim3(1)}, y, 1);
  b.wait();
  CHECK((x[0] == 0 && y[0] == 1));
  cudaDeviceSynchronize();
  CHECK(x[0] == 1);
}

TEST_CASE("cudaStreamWaitEvent orders two streams, which are not without it", "[simt][race]") {
  int unordered = 0;
  in_every_order([&] {
    for (bool waits : {true, false}) {
      TestStream a, b;
      Event event;
      Array<int> x(std::vector{0}), y(std::vector{0});
      launch<store_kernel>({a, dim3(1), dim3(1)}, x, 7);
      cudaEventRecord(event, a);
      launch<store_kernel>({a, dim3(1), dim3(1)}, x, 7);
      if (waits) cudaStreamWaitEvent(b, event);
      launch<copy_kernel>({b, dim3(1), dim3(1)}, y, x);
      b.wait();
      if (waits) CHECK(y[0] == 7);
      unordered += y[0] != 7;
    }
  });
  CHECK(unordered > 0);
}

TEST_CASE("an event waits for what came before its record, and for no more", "[simt]") {
  const ScopedOptions scope(options());
  options().landing = Landing::Latest;
  TestStream stream;
  Event event;
  Array<int> x(std::vector{0});
  CHECK(cudaEventQuery(event) == cudaSuccess);  // never recorded
  CHECK(cudaEventSynchronize(event) == cudaSuccess);
  launch<store_kernel>({stream, dim3(1), dim3(1)}, x, 1);
  cudaEventRecord(event, stream);
  launch<store_kernel>({stream, dim3(1), dim3(1)}, x, 2);
  CHECK(cudaEventSynchronize(event) == cudaSuccess);
  CHECK(x[0] == 1);
  stream.wait();
  CHECK(x[0] == 2);
}

TEST_CASE("queries tell whether work is done, and loops of them end", "[simt]") {
  const ScopedOptions scope(options());
  options().landing = Landing::Latest;
  TestStream stream;
  Event event;
  Array<int> x(std::vector{0});
  CHECK(cudaStreamQuery(stream) == cudaSuccess);
  launch<store_kernel>({stream, dim3(1), dim3(1)}, x, 1);
  cudaEventRecord(event, stream);
  CHECK(cudaEventQuery(event) == cudaErrorNotReady);
  while (cudaEventQuery(event) == cudaErrorNotReady) {
  }
  CHECK(x[0] == 1);
  launch<store_kernel>({stream, dim3(1), dim3(1)}, x, 2);
  CHECK(cudaStreamQuery(stream) == cudaErrorNotReady);
  while (cudaStreamQuery(stream) == cudaErrorNotReady) {
  }
  CHECK(x[0] == 2);
}

TEST_CASE("elapsed time needs two events that have happened and have clocks", "[simt]") {
  const ScopedOptions scope(options());
  options().landing = Landing::Latest;
  TestStream stream;
  Event start, end, no_clock(cudaEventDisableTiming);
  float time = -1;
  CHECK(cudaEventElapsedTime(&time, start, end) == cudaErrorInvalidResourceHandle);
  for (cudaEvent_t event : {cudaEvent_t(start), cudaEvent_t(no_clock), cudaEvent_t(end)})
    cudaEventRecord(event, stream);
  CHECK(cudaEventElapsedTime(&time, start, end) == cudaErrorNotReady);
  stream.wait();
  CHECK(cudaEventElapsedTime(&time, start, end) == cudaSuccess);
  CHECK(time >= 0);
  CHECK(cudaEventElapsedTime(&time, start, no_clock) == cudaErrorInvalidResourceHandle);
  cudaGetLastError();
}

TEST_CASE("host functions run in their turn and must not call CUDA", "[simt]") {
  in_every_order([] {
    TestStream stream;
    Array<int> x(std::vector{0});
    struct Seen {
      int* x;
      int value;
      cudaError_t error;
    } seen{x, 0, cudaSuccess};
    launch<store_kernel>({stream, dim3(1), dim3(1)}, x, 5);
    cudaLaunchHostFunc(
        stream,
        [](void* data) {
          auto* const s = static_cast<Seen*>(data);
          s->value = *s->x;
          s->error = cudaDeviceSynchronize();
        },
        &seen);
    launch<store_kernel>({stream, dim3(1), dim3(1)}, x, 6);
    stream.wait();
    CHECK(seen.value == 5);
    CHECK(seen.error == cudaErrorNotPermitted);
    CHECK(x[0] == 6);
  });
}

TEST_CASE("the work of a destroyed stream is done when somebody waits for the device",
          "[simt][race]") {
  const ScopedOptions scope(options());
  TestStream other;
  Array<int> x(std::vector{0});
  const auto destroy_with_work = [&](int value) {
    TestStream stream;
    launch<store_kernel>({stream, dim3(1), dim3(1)}, x, value);
  };
  options().landing = Landing::Latest;
  destroy_with_work(3);
  other.wait();
  CHECK(x[0] == 0);
  cudaDeviceSynchronize();
  CHECK(x[0] == 3);
  destroy_with_work(4);
  Array<int>(1);  // and its cudaFree
  CHECK(x[0] == 4);
  options().landing = Landing::Earliest;
  destroy_with_work(5);
  CHECK(x[0] == 5);
}

TEST_CASE("an event of a destroyed stream can be waited for, also after a fault", "[simt]") {
  const ScopedOptions scope(options());
  TestStream other;
  Event event;
  Array<int> x(std::vector{0}), y(std::vector{0});
  options().landing = Landing::Earliest;
  launch<failing_kernel>({other, dim3(1), dim3(1)});  // nobody has asked yet
  options().landing = Landing::Latest;
  {
    TestStream stream;
    launch<store_kernel>({stream, dim3(1), dim3(1)}, x, 3);
    cudaEventRecord(event, stream);
  }
  cudaStreamWaitEvent(other, event);
  launch<copy_kernel>({other, dim3(1), dim3(1)}, y, x);
  CHECK_THROWS_WITH(cudaStreamSynchronize(other), Catch::Contains("failing_kernel"));
  other.wait();
  CHECK(y[0] == 3);
  CHECK(cudaEventQuery(event) == cudaSuccess);
}

TEST_CASE("the fault of a destroyed stream is thrown by the next wait", "[simt]") {
  TestStream other;
  for (bool quietly : {false, true}) {
    {
      TestStream stream;
      launch<failing_kernel>({stream, dim3(1), dim3(1)});
      if (quietly) finish_quietly(stream);
    }
    CHECK_THROWS_WITH(quietly ? cudaStreamSynchronize(other) : cudaDeviceSynchronize(),
                      Catch::Contains("failing_kernel"));
    other.wait();  // once
  }
}

TEST_CASE("a fault is thrown by the wait, and what was queued behind it is dropped", "[simt]") {
  in_every_order([] {
    TestStream stream;
    Array<int> x(std::vector{0});
    launch<failing_kernel>({stream, dim3(1), dim3(1)});
    if (options().landing == Landing::Latest)
      launch<store_kernel>({stream, dim3(1), dim3(1)}, x, 1);
    CHECK_THROWS_WITH(cudaStreamSynchronize(stream), Catch::Contains("told to fail"));
    CHECK(x[0] == 0);
    launch<store_kernel>({stream, dim3(1), dim3(1)}, x, 2);
    stream.wait();
    CHECK(x[0] == 2);
  });
}

TEST_CASE("handles that do not exist are refused", "[simt]") {
  cudaStream_t gone;
  REQUIRE(cudaStreamCreateWithFlags(&gone, cudaStreamNonBlocking) == cudaSuccess);
  REQUIRE(cudaStreamDestroy(gone) == cudaSuccess);
  CHECK(cudaStreamDestroy(gone) == cudaErrorInvalidResourceHandle);
  CHECK(cudaStreamSynchronize(gone) == cudaErrorInvalidResourceHandle);
  CHECK(cudaStreamSynchronize(nullptr) == cudaErrorInvalidResourceHandle);
  cudaEvent_t event;
  REQUIRE(cudaEventCreate(&event) == cudaSuccess);
  CHECK(cudaEventRecord(event, gone) == cudaErrorInvalidResourceHandle);
  REQUIRE(cudaEventDestroy(event) == cudaSuccess);
  CHECK(cudaEventQuery(event) == cudaErrorInvalidResourceHandle);
  CHECK_THROWS(launch<failing_kernel>({gone, dim3(1), dim3(1)}));
  CHECK_THROWS(launch<failing_kernel>({nullptr, dim3(1), dim3(1)}));
  CHECK(cudaStreamCreateWithFlags(&gone, 2) == cudaErrorInvalidValue);
  cudaGetLastError();
}

}  // namespace tessera::simt
