// The host model's stream capture and graphs.
#include <set>
#include <thread>

#include "tests/simt_device.h"

namespace tessera::simt {
namespace {

void scale_kernel(float* x, float by) { x[threadIdx.x] *= by; }

void begin(cudaStream_t stream) {
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
}

class Graph {
 public:
  explicit Graph(cudaStream_t stream) {
    cudaGraph_t graph;
    REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    REQUIRE(cudaGraphInstantiate(&exec_, graph) == cudaSuccess);
    REQUIRE(cudaGraphDestroy(graph) == cudaSuccess);
  }
  ~Graph() { CHECK(cudaGraphExecDestroy(exec_) == cudaSuccess); }
  Graph(const Graph&) = delete;
  void run(TestStream& stream) const {
    REQUIRE(cudaGraphLaunch(exec_, stream) == cudaSuccess);
    stream.wait();
  }

 private:
  cudaGraphExec_t exec_;
};

// From here on `to` comes after what is on `from`.
void order(cudaStream_t from, cudaStream_t to) {
  const Event event;
  REQUIRE(cudaEventRecord(event, from) == cudaSuccess);
  REQUIRE(cudaStreamWaitEvent(to, event) == cudaSuccess);
}

// `spoil` fails with `error` while a stream captures, and the capture fails, too.
template <class F>
void spoils(cudaError_t error, F spoil) {
  TestStream stream;
  begin(stream);
  CHECK(spoil(stream) == error);
  cudaGraph_t graph;
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
  CHECK(graph == nullptr);
  cudaStreamCaptureStatus status;
  CHECK(cudaStreamIsCapturing(stream, &status) == cudaSuccess);
  CHECK(status == cudaStreamCaptureStatusNone);
  cudaGetLastError();
}

}  // namespace

TEST_CASE("what a stream captures does not run until the graph is launched", "[simt]") {
  in_every_order([] {
    TestStream stream;
    Array<float> x(std::vector<float>(32, 1));
    cudaStreamCaptureStatus status;
    begin(stream);
    cudaStreamIsCapturing(stream, &status);
    CHECK(status == cudaStreamCaptureStatusActive);
    launch<scale_kernel>({stream, dim3(1), dim3(32)}, x, 2.0f);
    launch<scale_kernel>({stream, dim3(1), dim3(32)}, x, 3.0f);
    const Graph graph(stream);
    stream.wait();
    CHECK(x[5] == 1);
    for (int i = 0; i < 3; ++i) graph.run(stream);
    CHECK(x[5] == 6 * 6 * 6);
  });
}

TEST_CASE("a graph has copies, fills and host functions, and work around it is in order",
          "[simt]") {
  in_every_order([] {
    TestStream stream;
    Array<float> x(32);
    float* pinned;
    REQUIRE(cudaMallocHost(reinterpret_cast<void**>(&pinned), 128) == cudaSuccess);
    int calls = 0;
    begin(stream);
    cudaMemsetAsync(x, 0, 128, stream);
    cudaMemcpyAsync(x, pinned, 64, cudaMemcpyHostToDevice, stream);
    launch<scale_kernel>({stream, dim3(1), dim3(32)}, x, 2.0f);
    cudaLaunchHostFunc(
        stream, [](void* data) { ++*static_cast<int*>(data); }, &calls);
    const Graph graph(stream);
    for (int i = 0; i < 16; ++i) pinned[i] = float(i);  // read at the launch, not at the capture
    launch<scale_kernel>({stream, dim3(1), dim3(32)}, x, 0.0f);
    graph.run(stream);
    launch<scale_kernel>({stream, dim3(1), dim3(32)}, x, 10.0f);
    stream.wait();
    CHECK(calls == 1);
    CHECK((x[3] == 60 && x[15] == 300 && x[16] == 0));
    cudaFreeHost(pinned);
  });
}

TEST_CASE("branches of a graph run in every order that their events allow", "[simt]") {
  const ScopedOptions scope(options());
  TestStream main, left, right;
  Array<int> log(std::vector<int>(20));
  begin(main);
  append(main, log, 0);
  order(main, left);
  order(main, right);
  append(left, log, 1);
  append(left, log, 2);
  append(right, log, 3);
  append(main, log, 4);
  order(left, main);
  order(right, main);
  append(main, log, 5);
  const Graph graph(main);
  std::set<std::vector<int>> orders;
  options().order = Order::Random;
  for (options().seed = 0; options().seed < 60; ++options().seed) {
    log[0] = 0;
    graph.run(main);
    const auto seen = entries(log);
    REQUIRE(seen.size() == 6);
    CHECK((seen.front() == 0 && seen.back() == 5));
    const auto at = [&](int what) { return std::find(seen.begin(), seen.end(), what); };
    CHECK(at(1) < at(2));
    orders.insert(seen);
  }
  CHECK(orders.size() == 12);  // of 1 < 2, 3 and 4: 4! / 2
  for (const Order order : {Order::Ascending, Order::Descending}) {
    options().order = order;
    log[0] = 0;
    graph.run(main);
    orders.insert(entries(log));
  }
  CHECK(orders.size() == 12);
}

TEST_CASE("what waits or allocates spoils a capture", "[simt]") {
  spoils(cudaErrorStreamCaptureUnsupported,
         [](cudaStream_t s) { return cudaStreamSynchronize(s); });
  spoils(cudaErrorStreamCaptureUnsupported, [](cudaStream_t s) { return cudaStreamQuery(s); });
  spoils(cudaErrorStreamCaptureUnsupported, [](cudaStream_t) { return cudaDeviceSynchronize(); });
  void* memory = nullptr;
  spoils(cudaErrorStreamCaptureUnsupported, [&](cudaStream_t) { return cudaMalloc(&memory, 8); });
  spoils(cudaErrorStreamCaptureUnsupported,
         [&](cudaStream_t) { return cudaMallocHost(&memory, 8); });
  REQUIRE(cudaMalloc(&memory, 8) == cudaSuccess);
  spoils(cudaErrorStreamCaptureUnsupported, [&](cudaStream_t) { return cudaFree(memory); });
  int host[2] = {};
  spoils(cudaErrorStreamCaptureUnsupported, [&](cudaStream_t s) {
    return cudaMemcpyAsync(memory, host, 8, cudaMemcpyHostToDevice, s);
  });
  CHECK(cudaFree(memory) == cudaSuccess);
}

TEST_CASE("what other threads do spoils a capture that is everybody's", "[simt]") {
  for (const auto mode : {cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal}) {
    const bool global = mode == cudaStreamCaptureModeGlobal;
    TestStream stream;
    REQUIRE(cudaStreamBeginCapture(stream, mode) == cudaSuccess);
    cudaGraph_t graph = nullptr;
    std::vector<cudaError_t> got(3);
    std::thread([&] {
      void* memory = nullptr;
      got[0] = cudaMalloc(&memory, 8);
      got[1] = cudaFree(memory);
      got[2] = cudaStreamEndCapture(stream, &graph);
    }).join();
    CHECK(got[0] == (global ? cudaErrorStreamCaptureUnsupported : cudaSuccess));
    CHECK(got[1] == cudaSuccess);
    CHECK(got[2] == cudaErrorStreamCaptureWrongThread);
    CHECK(cudaStreamEndCapture(stream, &graph) ==
          (global ? cudaErrorStreamCaptureInvalidated : cudaSuccess));
    if (graph) CHECK(cudaGraphDestroy(graph) == cudaSuccess);
    cudaGetLastError();
  }
}

TEST_CASE("a graph cannot wait for what happens outside of it", "[simt]") {
  TestStream other;
  const Event event;
  cudaEventRecord(event, other);
  spoils(cudaErrorStreamCaptureIsolation,
         [&](cudaStream_t s) { return cudaStreamWaitEvent(s, event); });
}

TEST_CASE("two captures cannot become one", "[simt]") {
  TestStream other;
  begin(other);
  const Event event;
  REQUIRE(cudaEventRecord(event, other) == cudaSuccess);
  spoils(cudaErrorStreamCaptureMerge,
         [&](cudaStream_t s) { return cudaStreamWaitEvent(s, event); });
  cudaGraph_t graph;
  CHECK(cudaStreamEndCapture(other, &graph) == cudaErrorStreamCaptureInvalidated);
}

TEST_CASE("captures end where they began, and with all branches joined", "[simt]") {
  TestStream main, branch;
  Array<int> log(std::vector<int>(8));
  cudaGraph_t graph;
  CHECK(cudaStreamEndCapture(main, &graph) == cudaErrorInvalidValue);  // never began
  CHECK(cudaStreamBeginCapture(main, cudaStreamCaptureModeRelaxed) == cudaErrorNotSupported);
  begin(main);
  CHECK(cudaStreamBeginCapture(main, cudaStreamCaptureModeGlobal) == cudaErrorInvalidValue);
  order(main, branch);
  append(branch, log, 1);
  CHECK(cudaStreamEndCapture(main, &graph) == cudaErrorStreamCaptureUnjoined);
  CHECK(graph == nullptr);
  begin(main);
  order(main, branch);
  CHECK(cudaStreamEndCapture(branch, &graph) == cudaErrorStreamCaptureUnmatched);
  CHECK(cudaStreamEndCapture(main, &graph) == cudaErrorStreamCaptureInvalidated);
  append(branch, log, 1);  // both are free again
  branch.wait();
  CHECK(log[0] == 1);
  cudaGetLastError();
}

TEST_CASE("a capture whose stream is destroyed is over", "[simt]") {
  TestStream branch;
  Array<int> log(std::vector<int>(8));
  cudaStreamCaptureStatus status;
  {
    TestStream main;
    begin(main);
    order(main, branch);
  }
  CHECK(cudaStreamIsCapturing(branch, &status) == cudaSuccess);
  CHECK(status == cudaStreamCaptureStatusNone);
  append(branch, log, 1);
  branch.wait();
  CHECK(log[0] == 1);
  TestStream main;
  begin(main);
  {
    TestStream gone;
    order(main, gone);
  }
  cudaGraph_t graph;
  CHECK(cudaStreamEndCapture(main, &graph) == cudaErrorStreamCaptureInvalidated);
  cudaGetLastError();
}

TEST_CASE("graphs and captures refuse streams that do not exist", "[simt]") {
  cudaStream_t gone;
  REQUIRE(cudaStreamCreateWithFlags(&gone, cudaStreamNonBlocking) == cudaSuccess);
  begin(gone);
  cudaGraph_t captured, graph;
  REQUIRE(cudaStreamEndCapture(gone, &captured) == cudaSuccess);
  cudaGraphExec_t exec;
  REQUIRE(cudaGraphInstantiate(&exec, captured) == cudaSuccess);
  REQUIRE(cudaStreamDestroy(gone) == cudaSuccess);
  for (cudaStream_t stream : {gone, cudaStream_t{}}) {
    cudaStreamCaptureStatus status;
    CHECK(cudaGraphLaunch(exec, stream) == cudaErrorInvalidResourceHandle);
    CHECK(cudaStreamIsCapturing(stream, &status) == cudaErrorInvalidResourceHandle);
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) ==
          cudaErrorInvalidResourceHandle);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorInvalidResourceHandle);
    CHECK(cudaGetLastError() == cudaErrorInvalidResourceHandle);
  }
  CHECK(cudaGraphExecDestroy(exec) == cudaSuccess);
  CHECK(cudaGraphDestroy(captured) == cudaSuccess);
}

TEST_CASE("events of a capture are no points in time", "[simt]") {
  TestStream stream;
  const Event event;
  begin(stream);
  cudaEventRecord(event, stream);
  CHECK(cudaEventQuery(event) == cudaErrorCapturedEvent);
  CHECK(cudaEventSynchronize(event) == cudaErrorCapturedEvent);
  float time;
  CHECK(cudaEventElapsedTime(&time, event, event) == cudaErrorCapturedEvent);
  cudaGraph_t graph;
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaErrorInvalidValue);
  CHECK(cudaGraphExecDestroy(nullptr) == cudaErrorInvalidValue);
  CHECK(cudaGraphLaunch(nullptr, stream) == cudaErrorInvalidValue);
  cudaGetLastError();
}

}  // namespace tessera::simt
