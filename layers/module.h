// The smallest layers: named parameters and a forward.
#pragma once

#include <optional>

#include "autograd/ops.h"
#include "autograd/parameters.h"
#include "layers/unet_config.h"

namespace tessera {

// Where a module puts its parameters: a prefix of their names. scope / "conv1" / "weight".
class Scope {
 public:
  explicit Scope(Parameters& parameters, std::string name = "")
      : parameters_(parameters), name_(std::move(name)) {}

  Scope operator/(const std::string& child) const {
    return Scope(parameters_, name_.empty() ? child : name_ + "." + child);
  }
  Parameter& parameter(const std::string& name, const Shape& shape, Init init,
                       FileLayout layout = FileLayout::Same, int64_t upsampled = 0,
                       ParameterStack* stack = nullptr) const {
    return parameters_.add((*this / name).name_, shape, init, layout, upsampled, stack);
  }
  ParameterStack& stack(const std::string& name, const Shape& empty) const {
    return parameters_.add_stack((*this / name).name_, empty);
  }
  RunningStatistics& statistics(int64_t C) const { return parameters_.add_statistics(name_, C); }
  const std::string& name() const { return name_; }

 private:
  Parameters& parameters_;
  std::string name_;
};

// What every layer has: its full name, "down1.res_block.conv1", which the tape reports.
class Module {
 public:
  explicit Module(const Scope& scope) : name_(scope.name()) {}
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;
  const std::string& name() const { return name_; }

 private:
  std::string name_;
};

// x [N,H,W,C] -> [N,P,Q,K]. PyTorch's default initialisation. upsampled: see Parameter.
class Conv2d : public Module {
 public:
  Conv2d(const Scope& scope, int64_t C, int64_t K, int64_t R, const ConvSpec& spec,
         FileLayout layout = FileLayout::Filter, int64_t upsampled = 0);
  Var forward(Tape& tape, const Var& x) const;

  const ConvSpec spec;
  const Parameter &weight, &bias;  // [K,R,R,C], [K]
};

// 2x2, stride 2: x [N,H,W,C] -> [N,2H,2W,K]. PyTorch's default initialisation.
class ConvTranspose2d : public Module {
 public:
  ConvTranspose2d(const Scope& scope, int64_t C, int64_t K);
  Var forward(Tape& tape, const Var& x) const;

  const Parameter &weight, &bias;  // [C,2,2,K], [K]
};

// x [N,C] -> [N,K]. PyTorch's default initialisation.
class Linear : public Module {
 public:
  Linear(const Scope& scope, int64_t C, int64_t K);
  Var forward(Tape& tape, const Var& x) const;

  const Parameter &weight, &bias;  // [K,C], [K]
};

// Linear layers that read the same x [N,C] -> [N,K_i] each, as one product: their parameters, which
// have names of their own, lie next to each other.
class LinearStack : public Module {
 public:
  LinearStack(const Scope& scope, int64_t C);
  // Adds a layer [K,C] with the parameters scope / "weight" and "bias", initialised as Linear's;
  // returns which of forward()'s outputs is its.
  size_t add(const Scope& scope, int64_t K);
  std::vector<Var> forward(Tape& tape, const Var& x) const;

 private:
  int64_t C_;
  ParameterStack &weights_, &biases_;  // [sum of K,C], [sum of K]
  std::vector<int64_t> widths_;        // K_i
};

// Which norm a network has.
struct NormOptions {
  int groups = 8;  // of NormKind::Group
  NormKind kind = NormKind::Group;
};

// x [N,H,W,C]; weight 1, bias 0. All but BatchNorm are GroupNorms: of some groups, of one (layer),
// of one a channel (instance). BatchNorm takes the statistics of the batch on a tape that records,
// and keeps running ones, which it takes on one that does not.
class Norm : public Module {
 public:
  Norm(const Scope& scope, int64_t C, const NormOptions& options);
  Var forward(Tape& tape, const Var& x) const;

  bool is_batch() const { return statistics_ != nullptr; }
  // The running statistics as ops::batch_norm takes them; none unless is_batch().
  std::optional<ops::BatchNormState> batch() const;

  const GroupNormSpec spec;        // of all but BatchNorm
  const Parameter &weight, &bias;  // [C], [C]

 private:
  const RunningStatistics* statistics_;
};

}  // namespace tessera
