// Reverse-mode differentiation. An op computes its output, then records on the tape a closure that
// maps the output's gradient to its inputs' gradients. backward() runs the closures once, last
// first, and drops each right after it ran, with the tensors it held.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/kernels.h"

namespace tessera {

// Where the gradient of one value is collected. A value used twice gets its first gradient written
// and the second added.
struct GradSlot {
  std::string name;  // "down1.res_block.conv1.weight", or of the op that made it
  Shape shape;
  DType dtype = DType::f32;
  bool wanted = false;    // false: nothing that is trained depends on it
  bool recorded = false;  // an op made it: its way back is on a tape, or was
  bool spent = false;     // and is not any more
  bool written = false;   // this step
  bool beside = false;    // by work beside the stream: join() before it is read or added to
  Tensor grad;            // a parameter's is part of the gradient arena and always there
  // Of values that lie next to each other: those of each, with gradients in `grad`.
  std::vector<std::shared_ptr<GradSlot>> parts = {};

  // Where a kernel puts its share; allocates at the first call of a step. Undefined if not wanted.
  Grad out(Stream& stream);
  // The same for work that is going to be issued beside the stream (core/branch.h).
  Grad out_beside(Stream& stream);
  // Makes dy, a share of the gradient, the first one, in its own memory: what comes is added to it.
  // False if that cannot be: a gradient is there, or somebody else holds dy.
  bool adopt(const Tensor& dy);
};

// A value that gradients flow through: a tensor and its slot. Copies share both.
struct Var {
  Tensor value;
  std::shared_ptr<GradSlot> slot;
  FilterForms forms = {};  // of a filter, those that are kept

  // A leaf: data (wanted = false), or an input whose gradient somebody reads. It has the value's
  // type; that of a filter or a vector in bf16 has to be f32: slot->dtype.
  static Var leaf(Tensor value, bool wanted = false, std::string name = "");

  const Shape& shape() const { return value.shape(); }
  bool wanted() const { return slot->wanted; }
  // The collected gradient; throws when there is none.
  const Tensor& grad() const;
};

// The first tensor that holds NaN or an infinity, found by a watching tape.
class NonFiniteError : public Error {
 public:
  NonFiniteError(std::string tensor_name, const std::string& message)
      : Error(message), tensor(std::move(tensor_name)) {}
  std::string tensor;
};

class Tape {
 public:
  // Receives the gradient of the op's output, whose memory it may reuse if nobody holds that output
  // (GradSlot::adopt).
  using Backward = std::function<void(Stream&, Tensor dy)>;
  // The same of an op with several outputs, some of which may have no gradient: undefined.
  using BackwardOfParts = std::function<void(Stream&, std::vector<Tensor> dy)>;
  enum class Mode { Train, Inference };  // Inference records nothing: values are freed when unused

  explicit Tape(Stream& stream, Mode mode = Mode::Train) : stream_(&stream), mode_(mode) {}

  Stream& stream() const { return *stream_; }
  bool recording() const { return mode_ == Mode::Train; }

  using Inputs = std::vector<const Var*>;

  // An uninitialised output whose gradient is wanted if that of an input is.
  Var output(const Shape& shape, DType dtype, const Inputs& inputs);
  // Called by an op after it computed y. inputs: everything that `backward` writes gradients of.
  void record(std::string_view op, const Inputs& inputs, const Var& y, Backward backward);
  void record(std::string_view op, const Inputs& inputs, const std::vector<Var>& y,
              BackwardOfParts backward);

  // Calls work(), whose ops compute beside the stream (core/branch.h): the caller joins stream()
  // before it uses their values. `work` holds copies of the tensors that they read. Their way back
  // is in line with all else.
  void beside(const std::function<void()>& work);

  // d loss / d everything wanted. loss has one element. Empties the tape, also when it throws: what
  // else was computed on it has no way back any more.
  void backward(const Var& loss);
  // The same from any value, with the given gradient of it, whose memory it takes if nobody else
  // has it.
  void backward_from(const Var& y, Tensor dy);

  // Check every value and gradient from now on and throw NonFiniteError at the first that is not
  // finite. Slow: for the second run of a step that went wrong.
  void watch() { watching_ = true; }

  // While it lives, what is recorded is called "name.<op>".
  class Scope {
   public:
    Scope(Tape& tape, const std::string& name) : tape_(tape), outer_(tape.prefix_) {
      tape.prefix_ = name + ".";
    }
    ~Scope() { tape_.prefix_ = outer_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Tape& tape_;
    std::string outer_;
  };

 private:
  struct Node {
    std::vector<std::shared_ptr<GradSlot>> inputs;
    std::vector<std::shared_ptr<GradSlot>> outputs;
    BackwardOfParts backward;
  };
  void back(Node& node);
  void drop();
  void check(const Tensor& tensor, const GradSlot& slot, const char* what = "");

  Stream* stream_;
  Mode mode_;
  bool watching_ = false;
  std::string prefix_;
  std::vector<Node> nodes_;
};

}  // namespace tessera
