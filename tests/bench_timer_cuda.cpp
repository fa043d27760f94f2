// Measures with CUDA events. Before each measurement a buffer of twice the L2 cache is written, so
// that nothing of the measured work's data is left there; meanwhile the host queues that work, and
// the time between the events is the GPU's alone.
#include "core/cuda/cuda.h"
#include "core/tensor.h"
#include "tests/bench_timer.h"

namespace tessera::TESSERA_CUDA {
namespace {

class EventTimer : public Timer {
 public:
  explicit EventTimer(Stream& stream)
      : stream_(stream),
        flush_(Tensor::empty(stream, {int64_t(2 * stream.device().info().l2_bytes)}, DType::u8)) {
    CUDA_CHECK(cudaEventCreate(&start_));
    CUDA_CHECK(cudaEventCreate(&stop_));
  }
  ~EventTimer() override {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
  }

  void start() override {
    flush_.zero(stream_);
    CUDA_CHECK(cudaEventRecord(start_, native()));
  }
  double stop() override {
    CUDA_CHECK(cudaEventRecord(stop_, native()));
    CUDA_CHECK(cudaEventSynchronize(stop_));
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start_, stop_));
    return milliseconds / 1e3;
  }

 private:
  cudaStream_t native() const { return static_cast<cudaStream_t>(stream_.native()); }

  Stream& stream_;
  Tensor flush_;
  cudaEvent_t start_, stop_;
};

}  // namespace

std::unique_ptr<Timer> make_event_timer(Stream& stream) {
  return std::make_unique<EventTimer>(stream);
}

}  // namespace tessera::TESSERA_CUDA
