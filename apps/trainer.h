// A network and what trains it: one call is one step. Everything random about a step follows from
// the seed, the epoch and the samples' numbers.
#pragma once

#include "apps/loader.h"
#include "apps/train_options.h"
#include "autograd/parameters.h"
#include "layers/unet.h"

namespace tessera {

class Trainer {
 public:
  // `stream` must outlive the trainer. The network starts from random numbers of options.seed.
  Trainer(Stream& stream, const TrainOptions& options);

  Trainer(const Trainer&) = delete;  // the optimizer refers to the model
  Trainer& operator=(const Trainer&) = delete;

  // One update on a batch: noise, forward, mean squared error, backward, Adam. Returns the loss.
  // Throws NonFiniteError before the update, naming the step and the first tensor, when the loss or
  // a gradient is not finite.
  double step(const Batch& batch);

  int64_t steps_done() const { return adam_.step; }
  // After a checkpoint was loaded into the parameters.
  void set_steps_done(int64_t step) { adam_.step = step; }
  UNet& model() { return model_; }
  const NoiseSpec& noise() const { return noise_; }

 private:
  // Leaves the gradients in the arena. watch: look at every tensor, see Tape::watch().
  double forward_backward(const Batch& batch, bool watch);
  [[noreturn]] void report_non_finite(const Batch& batch, double loss, double norm);

  Stream& stream_;
  int64_t image_size_;
  NoiseSpec noise_;
  UNet model_;
  Adam adam_;
};

}  // namespace tessera
