#include "core/recording.h"

#include "core/check.h"

namespace tessera {
namespace {

// While it lives, the stream asks for memory in `order`.
class OrderScope {
 public:
  OrderScope(Stream& stream, Order order) : stream_(stream), outer_(stream.exchange_order(order)) {}
  ~OrderScope() { stream_.exchange_order(outer_); }

 private:
  Stream& stream_;
  Order outer_;
};

}  // namespace

Recording::Recording(Stream& stream) : stream_(stream) {
  if (stream.device().runtime().can_record())
    order_ = stream.device().pool()->open_order(/*held=*/true);
}

Recording::~Recording() {
  if (order_ == 0) return;
  recorded_.reset();
  // What is queued may still use the memory.
  stream_.device().pool()->close_order(order_, /*work_is_done=*/false);
}

void Recording::run(const std::function<void()>& work) {
  Runtime& runtime = stream_.device().runtime();
  if (!runtime.can_record()) return work();
  if (!recorded_) {
    const OrderScope scope(stream_, order_);
    if (!warm_) {
      work();
      warm_ = true;
      return;
    }
    runtime.begin_recording(stream_.native());
    try {
      work();
    } catch (...) {
      runtime.end_recording(stream_.native(), /*drop=*/true);
      throw;
    }
    recorded_ = runtime.end_recording(stream_.native(), /*drop=*/false);
    ENSURE(recorded_, "the recording was spoilt: the work waits for something");
  }
  runtime.replay(stream_.native(), recorded_.get());
}

}  // namespace tessera
