// Stream capture and graphs.
#include <algorithm>

#include "core/simt/runner.h"
#include "core/simt/stream.h"

namespace tessera::simt {
namespace {

// Whether `node` comes before (or is) one of `last`.
bool is_before(const std::vector<Node>& nodes, int node, const std::vector<int>& last) {
  std::vector<bool> before(nodes.size());
  for (int i : last) before[size_t(i)] = true;
  for (size_t i = nodes.size(); i-- > 0;)  // a node's predecessors have lower numbers
    if (before[i])
      for (int earlier : nodes[i].after) before[size_t(earlier)] = true;
  return before[size_t(node)];
}

template <class T>
cudaError_t destroy(std::vector<T*>& all, T* one) {
  if (in_host_function) return result(cudaErrorNotPermitted);
  std::lock_guard lock(Machine::get().mutex);
  if (std::erase(all, one) == 0) return result(cudaErrorInvalidValue);
  const Unwatched own;
  delete one;
  return cudaSuccess;
}

}  // namespace

bool Machine::refuses_in_capture(bool to_all) {
  bool refused = false;
  for (StreamState* stream : streams)
    if (const auto& capture = stream->capture;
        capture && (to_all || !capture->local || capture->is_callers()))
      refused = capture->spoilt = true;
  return refused;
}

void replay(const std::vector<Node>& nodes, const Options& options) {
  std::vector<size_t> waits(nodes.size());
  std::vector<std::vector<int>> next(nodes.size());
  std::vector<int> ready;
  struct Line {
    Timeline timeline;
    SyncPoint end;
  };
  std::vector<Line> lines(nodes.size());
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (kThreadSanitizer) lines[i].timeline = Timeline(concat("node ", i, " of a graph"));
    waits[i] = nodes[i].after.size();
    for (int earlier : nodes[i].after) next[size_t(earlier)].push_back(int(i));
    if (waits[i] == 0) ready.push_back(int(i));
  }
  uint64_t state = options.seed;
  while (!ready.empty()) {
    auto chosen = ready.begin();
    if (options.order == Order::Ascending) chosen = std::min_element(ready.begin(), ready.end());
    if (options.order == Order::Descending) chosen = std::max_element(ready.begin(), ready.end());
    if (options.order == Order::Random) chosen += long(next_random(state) % ready.size());
    const size_t i = size_t(*chosen);
    ready.erase(chosen);
    {
      const As scope(lines[i].timeline);
      for (int earlier : nodes[i].after) lines[size_t(earlier)].end.acquire();
      nodes[i].run(options);
      lines[i].end.release();
    }
    lines[i].end.acquire();  // by the stream
    for (int later : next[i])
      if (--waits[size_t(later)] == 0) ready.push_back(later);
  }
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (in_host_function) return result(cudaErrorNotPermitted);
  Machine& machine = Machine::get();
  std::lock_guard lock(machine.mutex);
  if (!machine.known(stream)) return result(cudaErrorInvalidResourceHandle);
  if (mode == cudaStreamCaptureModeRelaxed) return result(cudaErrorNotSupported);
  if (stream->capture) return result(cudaErrorInvalidValue);
  stream->capture = std::make_shared<Capture>();
  stream->capture->origin = stream;
  stream->capture->thread = std::this_thread::get_id();
  stream->capture->local = mode == cudaStreamCaptureModeThreadLocal;
  stream->last.clear();
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (in_host_function) return result(cudaErrorNotPermitted);
  Machine& machine = Machine::get();
  std::lock_guard lock(machine.mutex);
  *graph = nullptr;
  if (!machine.known(stream)) return result(cudaErrorInvalidResourceHandle);
  const auto capture = stream->capture;
  if (!capture) return result(cudaErrorInvalidValue);
  if (!capture->is_callers()) return result(cudaErrorStreamCaptureWrongThread);
  if (capture->origin != stream) {
    capture->spoilt = true;
    return result(cudaErrorStreamCaptureUnmatched);
  }
  // Streams that took part must have been joined: everything comes before the origin's end.
  bool joined = true;
  for (StreamState* other : machine.streams) {
    if (other->capture != capture || other == stream) continue;
    for (int node : other->last) joined &= is_before(capture->nodes, node, stream->last);
    other->capture = nullptr;
  }
  stream->capture = nullptr;
  capture->origin = nullptr;
  if (capture->spoilt) return result(cudaErrorStreamCaptureInvalidated);
  if (!joined) return result(cudaErrorStreamCaptureUnjoined);
  machine.graphs.push_back(*graph = new GraphState{std::move(capture->nodes)});
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  Machine& machine = Machine::get();
  std::lock_guard lock(machine.mutex);
  if (!machine.known(stream)) return result(cudaErrorInvalidResourceHandle);
  *status = !stream->capture          ? cudaStreamCaptureStatusNone
            : stream->capture->spoilt ? cudaStreamCaptureStatusInvalidated
                                      : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                 unsigned long long flags) {
  if (in_host_function) return result(cudaErrorNotPermitted);
  Machine& machine = Machine::get();
  std::lock_guard lock(machine.mutex);
  const auto& graphs = machine.graphs;
  if (flags != 0 || std::find(graphs.begin(), graphs.end(), graph) == graphs.end())
    return result(cudaErrorInvalidValue);
  *exec = new GraphExecState{std::make_shared<const std::vector<Node>>(graph->nodes)};
  machine.execs.push_back(*exec);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (in_host_function) return result(cudaErrorNotPermitted);
  Machine& machine = Machine::get();
  std::lock_guard lock(machine.mutex);
  const auto& execs = machine.execs;
  if (std::find(execs.begin(), execs.end(), exec) == execs.end())
    return result(cudaErrorInvalidValue);
  if (!machine.known(stream)) return result(cudaErrorInvalidResourceHandle);
  if (stream->capture && stream->capture->spoilt) return result(cudaErrorStreamCaptureInvalidated);
  issue(stream, [nodes = exec->nodes](const Options& o) { replay(*nodes, o); });
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  return destroy(Machine::get().execs, exec);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return destroy(Machine::get().graphs, graph); }

}  // namespace tessera::simt
