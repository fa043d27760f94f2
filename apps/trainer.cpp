#include "apps/trainer.h"

#include <cmath>
#include <cstring>
#include <numeric>

#include "apps/batch_hint.h"

namespace tessera {
namespace {

// The parameters with their gradients and moments, which Adam needs to be there.
Parameters& prepared_for_training(Stream& stream, Parameters& parameters) {
  parameters.prepare_training(stream);
  return parameters;
}

Precision precision_on(const Device& device, const std::string& name) {
  return precision_of(resolve_precision(name, name_of(device.type()), device.info().capability));
}

AdamSpec adam_spec(const TrainOptions& options) {
  AdamSpec spec;
  spec.lr = options.lr;
  return spec;
}

}  // namespace

Trainer::Trainer(Stream& stream, const TrainOptions& options, Tensor images)
    : stream_(stream),
      image_size_(options.image_size),
      noise_{uint64_t(options.seed), 0, float(options.noise_level)},
      images_(std::move(images)),
      model_(stream, options.network(), uint64_t(options.seed), ops::Fusion::On,
             precision_on(stream.device(), options.precision)),
      adam_(stream, prepared_for_training(stream, model_.parameters()), adam_spec(options)),
      losses_(Tensor::empty(stream, {kWindow})) {}

double Trainer::step(const Batch& batch) {
  enqueue(batch);
  return wait().back();
}

void Trainer::enqueue(const Batch& batch) {
  const size_t slot = unwaited_.size();
  ENSURE(slot < size_t(kWindow), "more than ", kWindow, " steps without a wait()");
  unwaited_.push_back(batch);
  with_batch_hint(batch.samples.size(), [&] {
    const Tensor loss = forward_backward(batch, /*watch=*/false);
    adam_.update(loss);
    stream_.device().runtime().copy(stream_.native(), losses_.slice(int64_t(slot), {1}).raw(),
                                    loss.raw(), loss.bytes());
  });
}

std::vector<double> Trainer::wait() {
  if (const int64_t step = adam_.poll()) report_non_finite(step);
  const std::vector<float> losses = losses_.to_vector<float>(stream_);
  std::vector<double> result(losses.begin(), losses.begin() + int64_t(unwaited_.size()));
  unwaited_.clear();
  staged_ = 0;
  return result;
}

template <class T>
Tensor Trainer::upload(const Shape& shape, std::span<const T> values) {
  if (staged_ == staging_.size()) staging_.emplace_back(stream_.device_ptr(), values.size_bytes());
  PinnedBuffer& buffer = staging_[staged_++];
  if (buffer.bytes().size() < values.size_bytes())
    buffer = PinnedBuffer(stream_.device_ptr(), values.size_bytes());
  std::memcpy(buffer.bytes().data(), values.data(), values.size_bytes());
  Tensor tensor = Tensor::empty(stream_, shape, dtype_of<T>);
  buffer.copy_to(stream_, tensor);
  return tensor;
}

Tensor Trainer::forward_backward(const Batch& batch, bool watch) {
  const int64_t n = int64_t(batch.samples.size());
  const Shape shape{n, image_size_, image_size_, model_.config().channels};
  NoiseSpec noise = noise_;
  noise.epoch = batch.epoch;

  const Tensor samples = upload<int64_t>({n}, batch.samples);
  Tensor images = images_, rows = samples;
  if (!images) {
    std::vector<int64_t> all(batch.samples.size());
    std::iota(all.begin(), all.end(), 0);
    images = upload<uint8_t>(shape, batch.images);
    rows = upload<int64_t>({n}, all);
  }
  Tensor t = Tensor::empty(stream_, {n}, DType::i32), clean = Tensor::empty(stream_, shape);
  Tensor noisy = Tensor::empty(stream_, shape, model_.precision().storage);
  make_batch(stream_, noise, images, rows, samples, t, clean, noisy);

  Tape tape(stream_);
  if (watch) tape.watch();
  model_.parameters().clear_gradients();
  const Var output = model_.forward(tape, Var::leaf(noisy, false, "noisy images"), t);
  const Var loss = ops::mse(tape, output, clean);
  tape.backward(loss);
  model_.parameters().finish_gradients(stream_);
  return loss.value;
}

// The step is done again, so that the tape can look at every tensor in the order of computation:
// too slow for the steps that go well. No update has touched the parameters since.
void Trainer::report_non_finite(int64_t step) {
  const size_t index = unwaited_.size() - 1 - size_t(adam_.step - step);
  const Batch batch = unwaited_.at(index);
  adam_.step = step - 1;
  adam_.clear_latch();
  unwaited_.clear();
  const std::string where = concat("stopped before the update of step ", step, ": ");
  try {
    forward_backward(batch, /*watch=*/true);
  } catch (const NonFiniteError& error) {
    throw NonFiniteError(error.tensor, where + error.what());
  }
  throw NonFiniteError("", where +
                               "every tensor is finite, but the loss or the norm of all "
                               "gradients is not");
}

}  // namespace tessera
