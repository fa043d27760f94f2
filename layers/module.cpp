#include "layers/module.h"

#include <cmath>

namespace tessera {
namespace {

// PyTorch's kaiming_uniform_(a = sqrt(5)) of weights, and its bound for biases, are the same.
Init uniform_by(int64_t fan_in) { return {1.0f / std::sqrt(float(fan_in)), 0.0f}; }

}  // namespace

Conv2d::Conv2d(const Scope& scope, int64_t C, int64_t K, int64_t R, const ConvSpec& conv_spec,
               FileLayout layout, int64_t upsampled)
    : Module(scope),
      spec(conv_spec),
      weight(scope.parameter("weight", {K, R, R, C}, uniform_by(C * R * R), layout, upsampled)),
      bias(scope.parameter("bias", {K}, uniform_by(C * R * R))) {}

Var Conv2d::forward(Tape& tape, const Var& x) const {
  Tape::Scope scope(tape, name());
  return ops::conv2d(tape, spec, x, weight.var, bias.var);
}

// PyTorch counts what a filter's second dimension there gives, not what reaches an output.
ConvTranspose2d::ConvTranspose2d(const Scope& scope, int64_t C, int64_t K)
    : Module(scope),
      weight(scope.parameter("weight", {C, 2, 2, K}, uniform_by(4 * K), FileLayout::Transposed)),
      bias(scope.parameter("bias", {K}, uniform_by(4 * K))) {}

Var ConvTranspose2d::forward(Tape& tape, const Var& x) const {
  Tape::Scope scope(tape, name());
  return ops::conv_transpose2d(tape, x, weight.var, bias.var);
}

Linear::Linear(const Scope& scope, int64_t C, int64_t K)
    : Module(scope),
      weight(scope.parameter("weight", {K, C}, uniform_by(C))),
      bias(scope.parameter("bias", {K}, uniform_by(C))) {}

Var Linear::forward(Tape& tape, const Var& x) const {
  Tape::Scope scope(tape, name());
  return ops::linear(tape, x, weight.var, bias.var);
}

LinearStack::LinearStack(const Scope& scope, int64_t C)
    : Module(scope),
      C_(C),
      weights_(scope.stack("weight", {0, C})),
      biases_(scope.stack("bias", {0})) {}

size_t LinearStack::add(const Scope& scope, int64_t K) {
  scope.parameter("weight", {K, C_}, uniform_by(C_), FileLayout::Same, 0, &weights_);
  scope.parameter("bias", {K}, uniform_by(C_), FileLayout::Same, 0, &biases_);
  widths_.push_back(K);
  return widths_.size() - 1;
}

std::vector<Var> LinearStack::forward(Tape& tape, const Var& x) const {
  Tape::Scope scope(tape, name());
  return ops::split_columns(tape, ops::linear(tape, x, weights_.var, biases_.var), widths_);
}

Norm::Norm(const Scope& scope, int64_t C, const NormOptions& options)
    : Module(scope),
      spec{options.kind == NormKind::Layer      ? 1
           : options.kind == NormKind::Instance ? int(C)
                                                : options.groups},
      weight(scope.parameter("weight", {C}, {0.0f, 1.0f})),
      bias(scope.parameter("bias", {C}, {0.0f, 0.0f})),
      statistics_(options.kind == NormKind::Batch ? &scope.statistics(C) : nullptr) {}

std::optional<ops::BatchNormState> Norm::batch() const {
  if (!statistics_) return std::nullopt;
  return ops::BatchNormState{statistics_->mean, statistics_->var};
}

Var Norm::forward(Tape& tape, const Var& x) const {
  Tape::Scope scope(tape, name());
  if (is_batch()) return ops::batch_norm(tape, x, weight.var, bias.var, *batch(), tape.recording());
  return ops::group_norm(tape, spec, x, weight.var, bias.var);
}

}  // namespace tessera
