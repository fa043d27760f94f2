#include "apps/trainer.h"

#include <cstring>
#include <numeric>

#include "apps/batch_hint.h"
#include "kernels/adam.h"

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
      model_(stream, options.network(), uint64_t(options.seed),
             options.fusion == "on" ? ops::Fusion::On : ops::Fusion::Off,
             precision_on(stream.device(), options.precision)),
      adam_(stream, prepared_for_training(stream, model_.parameters()), adam_spec(options)),
      loss_(Tensor::empty(stream, {1})),
      losses_(Tensor::empty(stream, {kWindow})) {
  if (const Tensor& statistics = model_.parameters().statistics)
    statistics_ = Tensor::empty(stream, statistics.shape(), statistics.dtype());
}

double Trainer::step(const Batch& batch) {
  enqueue(batch);
  return wait().back();
}

void Trainer::enqueue(const Batch& batch) {
  const size_t slot = unwaited_.size();
  ENSURE(slot < size_t(kWindow), "more than ", kWindow, " steps without a wait()");
  Parameters& parameters = model_.parameters();
  copy(parameters.statistics, statistics_);
  const auto attempt = [&] {
    try {
      issue(batch);
    } catch (const OutOfMemory&) {
      copy(statistics_, parameters.statistics);
      throw;
    }
  };
  const int64_t size = int64_t(batch.samples.size());
  with_batch_hint(batch.samples.size(), [&] {
    try {
      attempt();
    } catch (const OutOfMemory&) {
      if (steps_.size() == steps_.count(size)) throw;
      drop_recordings();  // a step of another size keeps its memory
      attempt();
    }
  });
  ++adam_.step, ++parameters.batches;
  unwaited_.push_back(batch);
  copy(loss_, losses_.slice(int64_t(slot), {1}));
}

void Trainer::copy(const Tensor& from, Tensor to) {
  if (from) stream_.device().runtime().copy(stream_.native(), to.raw(), from.raw(), from.bytes());
}

void Trainer::issue(const Batch& batch) {
  Step& step = prepare(batch);
  step.recording.run([&] {
    const Tensor loss = forward_backward(step, /*watch=*/false);
    adam_.issue(loss, step.step, step.factors);
    copy(loss, loss_);
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
void Trainer::upload(Tensor& tensor, std::span<const T> values) {
  if (staged_ == staging_.size()) staging_.emplace_back(stream_.device_ptr(), values.size_bytes());
  PinnedBuffer& buffer = staging_[staged_++];
  if (buffer.bytes().size() < values.size_bytes())
    buffer = PinnedBuffer(stream_.device_ptr(), values.size_bytes());
  std::memcpy(buffer.bytes().data(), values.data(), values.size_bytes());
  buffer.copy_to(stream_, tensor);
}

Trainer::Step& Trainer::prepare(const Batch& batch) {
  const int64_t n = int64_t(batch.samples.size());
  Step* step = steps_.contains(n) ? steps_[n].get() : nullptr;
  if (!step) {
    auto made = std::make_unique<Step>(stream_);
    step = made.get();
    const auto i64 = [&](int64_t size) { return Tensor::empty(stream_, {size}, DType::i64); };
    step->numbers = i64(n + 2);
    step->samples = step->numbers.slice(0, {n}), step->step = step->numbers.slice(n, {1});
    step->epoch = step->numbers.slice(n + 1, {1});
    step->factors = Tensor::empty(stream_, {AdamFactors<float>::kCount});
    if (images_) {
      step->images = images_, step->rows = step->samples;
    } else {  // the batch is a set of its own
      const Shape shape{n, image_size_, image_size_, model_.config().channels};
      step->images = Tensor::empty(stream_, shape, DType::u8), step->rows = i64(n);
      std::vector<int64_t> all(batch.samples.size());
      std::iota(all.begin(), all.end(), 0);
      upload<int64_t>(step->rows, all);
    }
    steps_[n] = std::move(made);
  }
  if (!images_) upload<uint8_t>(step->images, batch.images);
  std::vector<int64_t> numbers(batch.samples.begin(), batch.samples.end());
  numbers.insert(numbers.end(), {adam_.step + 1, int64_t{batch.epoch}});
  upload<int64_t>(step->numbers, numbers);
  upload<float>(step->factors, adam_factors(adam_.spec(), adam_.step + 1));
  return *step;
}

Tensor Trainer::forward_backward(const Step& step, bool watch) {
  const int64_t n = step.rows.dim(0);
  const Shape shape{n, image_size_, image_size_, model_.config().channels};
  Tensor t = Tensor::empty(stream_, {n}, DType::i32), clean = Tensor::empty(stream_, shape);
  Tensor noisy = Tensor::empty(stream_, shape, model_.precision().storage);
  make_batch(stream_, noise_, step.images, step.rows, step.samples, step.epoch, t, clean, noisy);

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
  drop_recordings();  // the step is done without, and needs the memory
  model_.parameters().batches -= adam_.step - (step - 1);
  adam_.step = step - 1;
  adam_.clear_latch();
  unwaited_.clear();
  const std::string where = concat("stopped before the update of step ", step, ": ");
  try {
    forward_backward(prepare(batch), /*watch=*/true);
  } catch (const NonFiniteError& error) {
    throw NonFiniteError(error.tensor, where + error.what());
  }
  throw NonFiniteError("", where +
                               "every tensor is finite, but the loss or the norm of all "
                               "gradients is not");
}

}  // namespace tessera
