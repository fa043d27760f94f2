// Measures with CUDA events. A measurement that begins cold writes a buffer of twice the L2 cache,
// so that nothing of the measured work's data is left there, and then keeps the stream waiting
// until the host has queued all of that work: the time between the events is the GPU's alone. Work
// that the host waits for on the way (find_non_finite), or that takes it longer than kMostQueueing
// to queue, is let go before, and its time includes what the GPU then waits for the host.
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "core/cuda/cuda.h"
#include "core/tensor.h"
#include "tests/bench_timer.h"

namespace tessera::TESSERA_CUDA {
namespace {

constexpr std::chrono::milliseconds kMostQueueing{10};

// Keeps a stream waiting until the host opens it, or for kMostQueueing.
class Gate {
 public:
  void close(cudaStream_t stream) {
    {
      std::lock_guard lock(mutex_);
      open_ = false;
    }
    CUDA_CHECK(cudaLaunchHostFunc(stream, &Gate::wait, this));
  }
  void open() {
    {
      std::lock_guard lock(mutex_);
      open_ = true;
    }
    opened_.notify_all();
  }

 private:
  static void wait(void* self) {
    Gate& gate = *static_cast<Gate*>(self);
    std::unique_lock lock(gate.mutex_);
    gate.opened_.wait_for(lock, kMostQueueing, [&] { return gate.open_; });
  }

  std::mutex mutex_;
  std::condition_variable opened_;
  bool open_ = true;
};

class EventTimer : public Timer {
 public:
  explicit EventTimer(Stream& stream)
      : stream_(stream),
        flush_(Tensor::empty(stream, {int64_t(2 * stream.device().info().l2_bytes)}, DType::u8)) {
    CUDA_CHECK(cudaEventCreate(&start_));
    CUDA_CHECK(cudaEventCreate(&stop_));
  }
  ~EventTimer() override {
    gate_.open();
    cudaStreamSynchronize(native());  // the gate is waited for there
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
  }

  void start(Begin begin) override {
    if (begin == Begin::Cold) {
      flush_.zero(stream_);
      gate_.close(native());
    }
    CUDA_CHECK(cudaEventRecord(start_, native()));
  }
  double stop() override {
    CUDA_CHECK(cudaEventRecord(stop_, native()));
    gate_.open();
    CUDA_CHECK(cudaEventSynchronize(stop_));
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start_, stop_));
    return milliseconds / 1e3;
  }

 private:
  cudaStream_t native() const { return static_cast<cudaStream_t>(stream_.native()); }

  Stream& stream_;
  Tensor flush_;
  Gate gate_;
  cudaEvent_t start_, stop_;
};

}  // namespace

std::unique_ptr<Timer> make_event_timer(Stream& stream) {
  return std::make_unique<EventTimer>(stream);
}

}  // namespace tessera::TESSERA_CUDA
