#include "apps/trainer.h"

#include <cmath>

namespace tessera {
namespace {

// The parameters with their gradients and moments, which Adam needs to be there.
Parameters& prepared_for_training(Stream& stream, Parameters& parameters) {
  parameters.prepare_training(stream);
  return parameters;
}

AdamSpec adam_spec(const TrainOptions& options) {
  AdamSpec spec;
  spec.lr = options.lr;
  return spec;
}

}  // namespace

Trainer::Trainer(Stream& stream, const TrainOptions& options)
    : stream_(stream),
      image_size_(options.image_size),
      noise_{uint64_t(options.seed), 0, float(options.noise_level)},
      model_(stream, options.network(), uint64_t(options.seed)),
      adam_(stream, prepared_for_training(stream, model_.parameters()), adam_spec(options)) {}

double Trainer::step(const Batch& batch) {
  const double loss = forward_backward(batch, /*watch=*/false);
  const double norm = adam_.gradient_norm();
  if (!std::isfinite(loss) || !std::isfinite(norm)) report_non_finite(batch, loss, norm);
  adam_.update();
  return loss;
}

double Trainer::forward_backward(const Batch& batch, bool watch) {
  const int64_t n = int64_t(batch.samples.size());
  const Shape shape{n, image_size_, image_size_, model_.config().channels};
  NoiseSpec noise = noise_;
  noise.epoch = batch.epoch;

  const Tensor images = Tensor::from<uint8_t>(stream_, shape, batch.images);
  const Tensor samples = Tensor::from<int64_t>(stream_, {n}, batch.samples);
  Tensor t = Tensor::empty(stream_, {n}, DType::i32);
  Tensor clean = Tensor::empty(stream_, shape), noisy = Tensor::empty(stream_, shape);
  draw_timesteps(stream_, noise, samples, t);
  normalize_images(stream_, images, clean);
  add_noise(stream_, noise, NoiseUse::Training, samples, t, clean, noisy);

  Tape tape(stream_);
  if (watch) tape.watch();
  model_.parameters().clear_gradients();
  const Var output = model_.forward(tape, Var::leaf(noisy, false, "noisy images"), t);
  const Var loss = ops::mse(tape, output, clean);
  tape.backward(loss);
  model_.parameters().finish_gradients(stream_);
  return loss.value.to_vector<float>(stream_)[0];
}

// The step is done again, so that the tape can look at every tensor in the order of computation:
// too slow for the steps that go well.
void Trainer::report_non_finite(const Batch& batch, double loss, double norm) {
  const std::string where = concat("stopped before the update of step ", adam_.step + 1, ": ");
  try {
    forward_backward(batch, /*watch=*/true);
  } catch (const NonFiniteError& error) {
    throw NonFiniteError(error.tensor, where + error.what());
  }
  throw NonFiniteError("", concat(where, "every tensor is finite, but loss ", loss,
                                  " and gradient norm ", norm, " are not"));
}

}  // namespace tessera
