// The smallest layers: named parameters and a forward.
#pragma once

#include "autograd/ops.h"
#include "autograd/parameters.h"

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
                       FileLayout layout = FileLayout::Same, int64_t upsampled = 0) const {
    return parameters_.add((*this / name).name_, shape, init, layout, upsampled);
  }
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

// x [N,C] -> [N,K]. PyTorch's default initialisation.
class Linear : public Module {
 public:
  Linear(const Scope& scope, int64_t C, int64_t K);
  Var forward(Tape& tape, const Var& x) const;

  const Parameter &weight, &bias;  // [K,C], [K]
};

// x [N,H,W,C]; weight 1, bias 0.
class GroupNorm : public Module {
 public:
  GroupNorm(const Scope& scope, int64_t C, int groups);
  Var forward(Tape& tape, const Var& x) const;

  const GroupNormSpec spec;
  const Parameter &weight, &bias;  // [C], [C]
};

}  // namespace tessera
