// A training step on one batch, without reading data: forward, loss, backward and Adam.
#pragma once

#include <array>

#include "kernels/adam.h"
#include "layers/unet.h"

namespace tessera {

class TrainingStep {
 public:
  // noisy [N,side,side,1] in the type of activations, clean in f32. The stream must outlive it.
  TrainingStep(Stream& stream, const UNetConfig& config, const Precision& precision, Tensor noisy,
               Tensor clean)
      : stream_(stream),
        net_(stream, config, 0, ops::Fusion::On, precision),
        adam_(stream, prepared(), {}),
        noisy_(Var::leaf(std::move(noisy))),
        clean_(std::move(clean)),
        t_(Tensor::zeros(stream, {clean_.dim(0)}, DType::i32)),
        now_(Tensor::from<int64_t>(stream, {1}, std::array{int64_t{1}})),
        factors_(Tensor::from<float>(stream, {AdamFactors<float>::kCount},
                                     adam_factors(adam_.spec(), 1))) {}

  // Issues it. To be recorded (core/recording.h), or not.
  void work() { update(gradients()); }

  // Its parts. Returns the loss; without one it has no say in the update.
  Tensor gradients() {
    net_.parameters().clear_gradients();
    Tape tape(stream_);
    const Var loss = ops::mse(tape, net_.forward(tape, noisy_, t_), clean_);
    tape.backward(loss);
    net_.parameters().finish_gradients(stream_);
    return loss.value;
  }
  void update(const Tensor& loss) { adam_.issue(loss, now_, factors_); }

 private:
  Parameters& prepared() {
    net_.parameters().prepare_training(stream_);
    return net_.parameters();
  }

  Stream& stream_;
  UNet net_;
  Adam adam_;
  Var noisy_;
  Tensor clean_, t_, now_, factors_;
};

}  // namespace tessera
