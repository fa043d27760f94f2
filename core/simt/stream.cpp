// Streams and events.
#include "core/simt/stream.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "core/simt/runner.h"

namespace tessera::simt {

thread_local bool in_host_function = false;

Machine& Machine::get() {
  static Machine machine;
  return machine;
}

Machine::~Machine() {
  for (StreamState* stream : streams)
    if (stream->destroyed) delete stream;
  if (!lost_) return;
  try {
    throw_lost();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error on the device, which nobody waited for: %s\n", error.what());
  }
  std::fflush(nullptr);
  std::_Exit(1);
}

void Machine::add_stream(StreamState* stream) {
  static int number = 0;
  stream->number = ++number;
  if (kThreadSanitizer) stream->timeline = Timeline(concat("stream ", stream->number));
  streams.push_back(stream);
}

bool Machine::known(const StreamState* stream) const {
  return std::find(streams.begin(), streams.end(), stream) != streams.end() && !stream->destroyed;
}

// As on a GPU its work goes on without it: who frees what the work needs has to wait before.
void Machine::destroy(StreamState& stream) {
  if (const auto capture = std::exchange(stream.capture, nullptr)) {
    capture->spoilt = true;
    if (capture->origin == &stream) {  // nobody can end it any more
      capture->origin = nullptr;
      for (StreamState* other : streams)
        if (other->capture == capture) other->capture = nullptr;
    }
  }
  stream.destroyed = true;
  sweep();
}

// Forgets destroyed streams that have done their work.
void Machine::sweep() {
  std::erase_if(streams, [&](StreamState* stream) {
    if (!stream->destroyed || !stream->work.empty()) return false;
    {
      const As scope(stream->timeline);
      departed_.release();
    }
    delete stream;
    return true;
  });
}

// The sequence starts anew with every seed that is set.
uint64_t Machine::random() {
  if (seed_ != options().seed) random_state_ = seed_ = options().seed;
  return next_random(random_state_);
}

void Machine::throw_lost() {
  if (lost_) std::rethrow_exception(std::exchange(lost_, nullptr));
}

void Machine::push(StreamState& stream, Work work) {
  work.options = options();
  work.issued.release();
  stream.work.push_back(std::move(work));
  const Landing landing = options().landing;
  if (landing == Landing::Latest) return;
  quietly([&] {
    while (landing == Landing::Earliest || random() % 4)
      if (!step(nullptr)) return;
  });
}

// A stream whose next piece of work can be done: of those that `wanted` depends on, or of all when
// work is done early.
StreamState* Machine::choose(StreamState* wanted) {
  const auto ready = [](const StreamState* s) {
    return !s->work.empty() && (!s->work.front().after || s->work.front().after->done);
  };
  if (wanted && options().landing == Landing::Latest) {
    while (!wanted->work.empty() && !ready(wanted)) wanted = wanted->work.front().after->stream;
    return wanted->work.empty() ? nullptr : wanted;
  }
  std::vector<StreamState*> candidates;
  std::copy_if(streams.begin(), streams.end(), std::back_inserter(candidates), ready);
  if (candidates.empty()) return nullptr;
  if (options().order == Order::Ascending) return candidates.front();
  if (options().order == Order::Descending) return candidates.back();
  return candidates[random() % candidates.size()];
}

bool Machine::step(StreamState* wanted) {
  StreamState* const stream = choose(wanted);
  if (!stream) return false;
  struct Sweep {
    Machine& machine;
    ~Sweep() { machine.sweep(); }
  } const last{*this};
  run(*stream);
  return true;
}

void Machine::run(StreamState& stream) {
  const Unwatched own;
  const Work work = std::move(stream.work.front());
  stream.work.pop_front();
  try {
    const As scope(stream.timeline);
    struct Done {  // also by a fault
      const SyncPoint& point;
      ~Done() { point.release(); }
    } const done{stream.done};
    work.issued.acquire();
    if (work.after) work.after->sync.acquire();
    if (work.run) work.run(work.options);
    if (work.completes) work.completes->sync.release();
  } catch (...) {
    stream.done.acquire();  // by the host, who hears of it
    drop_everything();
    if (work.completes) work.completes->done = true;
    throw;
  }
  if (!work.completes) return;
  work.completes->done = true;
  work.completes->time = std::chrono::steady_clock::now();
}

// After a fault nothing that is queued makes sense.
void Machine::drop_everything() {
  for (StreamState* stream : streams) {
    for (const Work& work : stream->work)
      if (work.completes) work.completes->done = true;
    stream->work.clear();
  }
}

void Machine::finish(StreamState& stream) {
  throw_lost();
  while (!stream.work.empty()) ENSURE(step(&stream), "streams wait for each other");
  stream.done.acquire();
  throw_lost();
}

void Machine::finish(const std::shared_ptr<Mark>& mark) {
  throw_lost();
  while (!mark->done) ENSURE(step(mark->stream), "streams wait for each other");
  mark->sync.acquire();
  throw_lost();
}

void Machine::finish_all() {
  while (step(nullptr)) {
  }
  for (const StreamState* stream : streams) {
    ENSURE(stream->work.empty(), "streams wait for each other");
    stream->done.acquire();
  }
  departed_.acquire();
}

namespace {

// How every function begins: one at a time, and not from a host function.
class Call {
 public:
  Call() : machine(Machine::get()), lock_(machine.mutex) {}
  Machine& machine;

  bool known(const StreamState* stream) const { return machine.known(stream); }
  bool known(const EventState* event) const {
    return std::find(machine.events.begin(), machine.events.end(), event) != machine.events.end();
  }

 private:
  std::lock_guard<std::recursive_mutex> lock_;
};

}  // namespace

#define REFUSE_UNLESS(condition, error) \
  if (!(condition)) return result(error)
#define BEGIN_CALL(handle)                                 \
  REFUSE_UNLESS(!in_host_function, cudaErrorNotPermitted); \
  Call call;                                               \
  REFUSE_UNLESS(call.known(handle), cudaErrorInvalidResourceHandle)

void issue(cudaStream_t stream, Run run) {
  ENSURE(!in_host_function, "CUDA is called by a host function");
  Call call;
  ENSURE(call.known(stream), "there is no such stream");
  if (!stream->capture) return call.machine.push(*stream, {std::move(run), {}, {}, {}, {}});
  Capture& capture = *stream->capture;
  ENSURE(!capture.spoilt, "the capture of the stream was spoilt by an earlier error");
  capture.nodes.push_back({std::move(run), stream->last});
  stream->last = {int(capture.nodes.size()) - 1};
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  REFUSE_UNLESS(!in_host_function, cudaErrorNotPermitted);
  REFUSE_UNLESS(stream && flags <= cudaStreamNonBlocking, cudaErrorInvalidValue);
  Call call;
  call.machine.add_stream(*stream = new StreamState);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  BEGIN_CALL(stream);
  call.machine.destroy(*stream);
  return cudaSuccess;
}

void finish_quietly(cudaStream_t stream) {
  Call call;
  ENSURE(call.known(stream), "there is no such stream");
  call.machine.quietly([&] { call.machine.finish(*stream); });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  BEGIN_CALL(stream);
  if (stream->capture) {
    stream->capture->spoilt = true;
    return result(cudaErrorStreamCaptureUnsupported);
  }
  call.machine.finish(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  BEGIN_CALL(stream);
  if (stream->capture) {
    stream->capture->spoilt = true;
    return result(cudaErrorStreamCaptureUnsupported);
  }
  call.machine.throw_lost();
  if (stream->work.empty()) return stream->done.acquire(), cudaSuccess;
  call.machine.step(stream);
  return cudaErrorNotReady;
}

cudaError_t cudaDeviceSynchronize() {
  REFUSE_UNLESS(!in_host_function, cudaErrorNotPermitted);
  Call call;
  REFUSE_UNLESS(!call.machine.refuses_in_capture(/*to_all=*/true),
                cudaErrorStreamCaptureUnsupported);
  call.machine.throw_lost();
  call.machine.finish_all();
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  REFUSE_UNLESS(!in_host_function, cudaErrorNotPermitted);
  REFUSE_UNLESS(event && (flags & ~unsigned{cudaEventDisableTiming}) == 0, cudaErrorInvalidValue);
  Call call;
  *event = new EventState;
  (*event)->timing = flags != cudaEventDisableTiming;
  call.machine.events.push_back(*event);
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  BEGIN_CALL(event);
  std::erase(call.machine.events, event);
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  BEGIN_CALL(stream);
  REFUSE_UNLESS(call.known(event), cudaErrorInvalidResourceHandle);
  event->capture = stream->capture;
  if (stream->capture) {
    REFUSE_UNLESS(!stream->capture->spoilt, cudaErrorStreamCaptureInvalidated);
    event->nodes = stream->last;
    return cudaSuccess;
  }
  event->mark = std::make_shared<Mark>();
  event->mark->stream = stream;
  call.machine.push(*stream, {{}, {}, {}, event->mark, {}});
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  BEGIN_CALL(event);
  REFUSE_UNLESS(!event->capture, cudaErrorCapturedEvent);
  if (event->mark) call.machine.finish(event->mark);
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  BEGIN_CALL(event);
  REFUSE_UNLESS(!event->capture, cudaErrorCapturedEvent);
  REFUSE_UNLESS(!call.machine.refuses_in_capture(), cudaErrorStreamCaptureUnsupported);
  call.machine.throw_lost();
  if (!event->mark) return cudaSuccess;
  if (event->mark->done) return event->mark->sync.acquire(), cudaSuccess;
  call.machine.step(event->mark->stream);
  return cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  BEGIN_CALL(start);
  REFUSE_UNLESS(call.known(end), cudaErrorInvalidResourceHandle);
  REFUSE_UNLESS(!start->capture && !end->capture, cudaErrorCapturedEvent);
  REFUSE_UNLESS(start->timing && end->timing && start->mark && end->mark,
                cudaErrorInvalidResourceHandle);
  if (!start->mark->done || !end->mark->done) return cudaErrorNotReady;
  *milliseconds =
      std::chrono::duration<float, std::milli>(end->mark->time - start->mark->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  BEGIN_CALL(stream);
  REFUSE_UNLESS(call.known(event), cudaErrorInvalidResourceHandle);
  auto& mine = stream->capture;
  if (mine && mine->spoilt) return result(cudaErrorStreamCaptureInvalidated);
  if (event->capture) {
    if (mine && mine != event->capture) {  // two captures cannot become one
      mine->spoilt = event->capture->spoilt = true;
      return result(cudaErrorStreamCaptureMerge);
    }
    REFUSE_UNLESS(!event->capture->spoilt && event->capture->origin,
                  cudaErrorStreamCaptureInvalidated);
    if (!mine) mine = event->capture, stream->last.clear();
    for (int node : event->nodes)
      if (std::find(stream->last.begin(), stream->last.end(), node) == stream->last.end())
        stream->last.push_back(node);
    return cudaSuccess;
  }
  if (mine) {  // a graph cannot wait for what happens outside of it
    mine->spoilt = true;
    return result(cudaErrorStreamCaptureIsolation);
  }
  if (event->mark) call.machine.push(*stream, {{}, {}, event->mark, {}, {}});
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  BEGIN_CALL(stream);
  if (stream->capture && stream->capture->spoilt) return result(cudaErrorStreamCaptureInvalidated);
  issue(stream, [=](const Options&) {
    struct Scope {
      Scope() { in_host_function = true; }
      ~Scope() { in_host_function = false; }
    } scope;
    function(data);
  });
  return cudaSuccess;
}

}  // namespace tessera::simt
