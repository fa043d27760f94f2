#include "apps/train_loop.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <numeric>

#include "apps/evaluate.h"
#include "apps/train_figure.h"
#include "layers/weights.h"

namespace tessera {
namespace {

constexpr int64_t kStepsToEstimate = 5;

double median(std::vector<double> values) {
  const size_t half = values.size() / 2;
  std::ranges::nth_element(values, values.begin() + half);
  if (values.size() % 2 == 1) return values[half];
  return (values[half] + *std::max_element(values.begin(), values.begin() + half)) / 2;
}

}  // namespace

TrainLoop::TrainLoop(const TrainOptions& options, const RunDir& dir, Stream& stream,
                     const Dataset& data, Trainer& trainer, const CheckpointState& state,
                     std::ostream& out, bool live)
    : options_(options),
      dir_(dir),
      stream_(stream),
      data_(data),
      trainer_(trainer),
      schedule_{data.train_size(), options.batch, total_steps(options, data.train_size())},
      state_(state),
      saved_step_(state.step > 0 ? state.step : -1),
      metrics_(dir.metrics(), state.step),
      progress_(out, live, state.step, schedule_.total) {}

bool TrainLoop::finished() const {
  const bool evaluated = !evaluation_due(state_.step) || metrics_.has_evaluation(state_.step);
  return state_.step >= schedule_.total && evaluated && std::filesystem::exists(dir_.model());
}

int TrainLoop::run() {
  // A run that was killed between a checkpoint and what follows it makes up for that.
  if (state_.step > 0 && evaluation_due(state_.step) && !metrics_.has_evaluation(state_.step))
    evaluate();
  if (state_.step < schedule_.total && !stop_.received()) {
    // Images that are on the device need not be read again.
    const auto image_bytes = size_t(options_.image_size * options_.image_size * options_.channels);
    Loader::ReadImage read = [this](int64_t i, uint8_t* out) { data_.train_image(i, out); };
    if (trainer_.has_images()) read = [](int64_t, uint8_t*) {};
    Loader loader(schedule_, uint64_t(options_.seed), trainer_.has_images() ? 0 : image_bytes,
                  std::move(read), state_.step + 1);
    while (state_.step < schedule_.total && !stop_.received()) {
      train_step(loader);
      after_step(state_.step);
    }
    if (!unseen_.empty()) look();
  }
  if (stop_.received()) return stopped();
  // A checkpoint that stayed behind the model would bring an older one back.
  std::filesystem::exists(dir_.checkpoint()) ? save_all() : save_model();
  return 0;
}

void TrainLoop::train_step(Loader& loader) {
  if (unseen_.empty()) look_at_ = std::chrono::steady_clock::now();
  loader.next(batch_);
  trainer_.enqueue(batch_);
  state_.step = trainer_.steps_done();
  unseen_.push_back(int64_t(batch_.samples.size()));
  images_since_log_ += unseen_.back();
  if (look_due(state_.step)) look();
}

// A GPU works ahead of the host, which waits only when somebody wants to know.
bool TrainLoop::look_due(int64_t step) const {
  return stream_.device().type() != DeviceType::cuda ||
         int64_t(unseen_.size()) == Trainer::kWindow || step % options_.log_every == 0 ||
         schedule_.ends_epoch(step) || step == schedule_.total || checkpoint_due(step) ||
         evaluation_due(step) || progress_.steps_seen() < kStepsToEstimate || stop_.received();
}

void TrainLoop::look() {
  const std::vector<double> losses = trainer_.wait();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - look_at_).count() /
      double(losses.size());
  for (size_t i = 0; i < losses.size(); ++i) {
    loss_ = losses[i];
    state_.epoch_loss += loss_;
    seconds_since_log_.push_back(seconds);
    progress_.step(loss_, double(unseen_.at(i)), seconds);
  }
  unseen_.clear();
}

void TrainLoop::after_step(int64_t step) {
  const bool last = step == schedule_.total;
  if (unseen_.empty() && progress_.steps_seen() == kStepsToEstimate && !last)
    progress_.line(fmt::format("about {} for the {} steps to come",
                               clock_text(progress_.seconds_left()), schedule_.total - step));
  if (step % options_.log_every == 0 || last) log(step);
  if (schedule_.ends_epoch(step) || last)
    progress_.line(fmt::format("Epoch [{}/{}], Loss: {:.6f}", schedule_.epoch_of(step) + 1,
                               schedule_.epochs(),
                               state_.epoch_loss / double(schedule_.done_in_epoch(step))));
  if (schedule_.ends_epoch(step)) state_.epoch_loss = 0;
  if (checkpoint_due(step)) save_all();
  if (evaluation_due(step) && !stop_.received()) evaluate();
}

void TrainLoop::log(int64_t step) {
  const double seconds = std::accumulate(seconds_since_log_.begin(), seconds_since_log_.end(), 0.0);
  metrics_.add({step, schedule_.epoch_of(step) + 1, loss_, median(seconds_since_log_),
                double(images_since_log_) / seconds, stream_.device().pool()->peak_bytes()});
  seconds_since_log_.clear();
  images_since_log_ = 0;
  progress_.status_line();
}

void TrainLoop::save_model() {
  if (model_step_ == state_.step) return;
  save_weights(stream_, trainer_.model().parameters(), trainer_.model().config(), dir_.model());
  model_step_ = state_.step;
}

// The model comes first: whoever finds a checkpoint finds a model that is at least as new. But for
// the first ones: a model without any checkpoint means that somebody deleted it.
void TrainLoop::save_all() {
  if (std::filesystem::exists(dir_.checkpoint())) save_model();
  if (saved_step_ != state_.step)
    save_checkpoint(stream_, trainer_.model().parameters(), state_, dir_.checkpoint());
  saved_step_ = state_.step;
  save_model();
}

bool TrainLoop::checkpoint_due(int64_t step) const {
  const int64_t every = options_.checkpoint_every;
  if (every == 0) return false;
  return step % every == 0 || schedule_.ends_epoch(step) || step == schedule_.total;
}

bool TrainLoop::evaluation_due(int64_t step) const {
  const auto every = options_.eval_every;
  if (every == 0) return false;
  return (every && step % *every == 0) || schedule_.ends_epoch(step) || step == schedule_.total;
}

void TrainLoop::evaluate() {
  EvalOptions eval{trainer_.noise(), options_.image_size, options_.batch};
  if (options_.preset == "tiny") eval.images = 16;  // the host model is slow
  const auto look = [&] {
    auto points = tessera::evaluate(stream_, trainer_.model(), data_, eval,
                                    [this] { return stop_.received() != 0; });
    if (points)
      draw_train_figure(stream_, trainer_.model(), options_, trainer_.noise(), data_,
                        dir_.figure());
    return points;
  };
  std::optional<std::vector<EvalPoint>> points;
  try {
    points = look();
  } catch (const OutOfMemory&) {
    trainer_.drop_recordings();  // they keep their memory
    points = look();
  }
  if (!points) return;
  metrics_.add(state_.step, *points);
  std::string text = fmt::format("step {}, held-out images", state_.step);
  for (const EvalPoint& p : *points)
    text += fmt::format("{} t={} {:.2f} -> {:.2f} dB", p.t == points->front().t ? ":" : ",", p.t,
                        p.noisy_psnr, p.denoised_psnr);
  progress_.line(text);
}

int TrainLoop::stopped() {
  save_all();
  progress_.line(fmt::format("stopped by {} after step {}: go on with --resume {}",
                             stop_.received() == SIGINT    ? "SIGINT"
                             : stop_.received() == SIGTERM ? "SIGTERM"
                                                           : "SIGHUP",
                             state_.step, dir_.path().string()));
  return 128 + stop_.received();
}

}  // namespace tessera
