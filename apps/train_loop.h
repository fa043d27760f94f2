// The loop of a training run: steps, metrics, checkpoints, evaluations.
#pragma once

#include <chrono>
#include <ostream>
#include <vector>

#include "apps/checkpoint.h"
#include "apps/dataset.h"
#include "apps/loader.h"
#include "apps/metrics.h"
#include "apps/progress.h"
#include "apps/run_dir.h"
#include "apps/schedule.h"
#include "apps/stop_signal.h"
#include "apps/trainer.h"

namespace tessera {

class TrainLoop {
 public:
  // Goes on from `state`, which the trainer's parameters are in. Everything passed must outlive it.
  TrainLoop(const TrainOptions& options, const RunDir& dir, Stream& stream, const Dataset& data,
            Trainer& trainer, const CheckpointState& state, std::ostream& out, bool live);

  // Nothing is left to do.
  bool finished() const;
  const Schedule& schedule() const { return schedule_; }
  // Returns 0, or 128 + the signal that stopped it after a step.
  int run();

 private:
  void train_step(Loader& loader);
  // Whether step `step` ends with a look at the losses, which waits for the device.
  bool look_due(int64_t step) const;
  // Takes the losses of the steps since the last look.
  void look();
  // Epoch line, metrics, checkpoint and evaluation that are due after a step.
  void after_step(int64_t step);
  void log(int64_t step);
  // Write model.safetensors, and checkpoint.safetensors too, unless they are of this step already.
  void save_model();
  void save_all();
  bool checkpoint_due(int64_t step) const;
  bool evaluation_due(int64_t step) const;
  void evaluate();
  int stopped();

  const TrainOptions& options_;
  const RunDir& dir_;
  Stream& stream_;
  const Dataset& data_;
  Trainer& trainer_;
  const Schedule schedule_;
  CheckpointState state_;
  int64_t saved_step_;       // that checkpoint.safetensors holds, or -1
  int64_t model_step_ = -1;  // that model.safetensors holds, when known
  Metrics metrics_;
  Progress progress_;
  StopSignal stop_;

  Batch batch_;
  std::vector<int64_t> unseen_;  // images of each step that nobody has looked at yet
  std::chrono::steady_clock::time_point look_at_;
  double loss_ = 0;                        // of the latest step that was looked at
  std::vector<double> seconds_since_log_;  // of each step
  int64_t images_since_log_ = 0;
};

}  // namespace tessera
