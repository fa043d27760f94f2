// A network and what trains it: one call is one step. Everything random about a step follows from
// the seed, the epoch and the samples' numbers.
#pragma once

#include <map>
#include <memory>

#include "apps/loader.h"
#include "apps/train_options.h"
#include "autograd/parameters.h"
#include "core/pinned_buffer.h"
#include "core/recording.h"
#include "layers/unet.h"

namespace tessera {

class Trainer {
 public:
  // `stream` must outlive the trainer. The network starts from random numbers of options.seed.
  // images: the whole data set, u8 [M,S,S,C], on the stream's device; undefined: every batch brings
  // its own.
  Trainer(Stream& stream, const TrainOptions& options, Tensor images = {});

  Trainer(const Trainer&) = delete;  // the optimizer refers to the model
  Trainer& operator=(const Trainer&) = delete;

  // One update on a batch: noise, forward, mean squared error, backward, Adam. Does not wait for
  // the device; wait() has to come after kWindow calls at the latest. Throws OutOfMemory, with a
  // smaller batch as a hint.
  void enqueue(const Batch& batch);
  // The losses of the steps since the last call. Throws NonFiniteError, naming the step and the
  // first tensor, when a loss or a gradient was not finite: neither that step's update nor a later
  // one has been done then. (But BatchNorms have seen their batches.)
  std::vector<double> wait();
  // Both: returns the loss.
  double step(const Batch& batch);

  static constexpr int64_t kWindow = 64;  // steps between two calls of wait(), at most

  int64_t steps_done() const { return adam_.step; }
  // Gives the memory of recorded steps back; they are recorded anew when they are next done.
  void drop_recordings() { steps_.clear(); }
  // After a checkpoint was loaded into the parameters.
  void set_steps_done(int64_t step) { adam_.step = step; }
  // Whether batches need no images.
  bool has_images() const { return images_.defined(); }
  UNet& model() { return model_; }
  const NoiseSpec& noise() const { return noise_; }

 private:
  // What a step of one batch size reads, always in the same place, and the step itself: its work is
  // recorded once and issued as one from then on.
  struct Step {
    explicit Step(Stream& stream) : recording(stream) {}
    Tensor images, rows;                   // u8 [n or all,S,S,C], i64 [n]
    Tensor numbers, samples, step, epoch;  // i64 [n+2]: [n], [1] and [1] of it
    Tensor factors;                        // f32 (AdamTensors)
    Recording recording;
  };
  // The step of a batch's size, with the batch uploaded to it.
  Step& prepare(const Batch& batch);
  // Leaves the gradients in the arena and returns the loss [1]. watch: see Tape::watch().
  Tensor forward_backward(const Step& step, bool watch);
  void issue(const Batch& batch);
  // On the device; of an undefined tensor nothing.
  void copy(const Tensor& from, Tensor to);
  // Copies values to the device without waiting for it.
  template <class T>
  void upload(Tensor& tensor, std::span<const T> values);
  [[noreturn]] void report_non_finite(int64_t step);

  Stream& stream_;
  int64_t image_size_;
  NoiseSpec noise_;
  Tensor images_;
  UNet model_;
  Adam adam_;
  std::map<int64_t, std::unique_ptr<Step>> steps_;  // by batch size
  Tensor loss_;                                     // [1] of the last step
  Tensor losses_;                      // [kWindow] of the steps that nobody waited for yet
  Tensor statistics_;                  // of BatchNorms, before a step that may run out of memory
  std::vector<Batch> unwaited_;        // their batches, in case one has to be looked at
  std::vector<PinnedBuffer> staging_;  // what was uploaded for them: read until wait()
  size_t staged_ = 0;                  // of these, in use
};

}  // namespace tessera
