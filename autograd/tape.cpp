#include "autograd/tape.h"

#include <algorithm>

#include "core/branch.h"

namespace tessera {

Grad GradSlot::out(Stream& stream) {
  if (!wanted) return {};
  const auto is_beside = [](const auto& part) { return part->beside; };
  if (std::exchange(beside, false) || std::ranges::any_of(parts, is_beside)) join(stream);
  if (!grad) grad = Tensor::empty(stream, shape, dtype);
  const GradMode mode = written ? GradMode::Accumulate : GradMode::Overwrite;
  for (const auto& part : parts) {
    ENSURE(written || !part->written, "the gradient of '", part->name,
           "' is there before that of '", name, '\'');
    part->written = true;
  }
  written = true;
  return {grad, mode};
}

Grad GradSlot::out_beside(Stream& stream) {
  const Grad share = out(stream);
  beside = wanted;
  return share;
}

bool GradSlot::adopt(const Tensor& dy) {
  if (!wanted || written || grad || !dy.alone()) return false;
  ENSURE(dy.shape() == shape && dy.dtype() == dtype, "gradient ", dy.shape(), ' ',
         name_of(dy.dtype()), " of '", name, "' ", shape, ' ', name_of(dtype));
  grad = dy;
  written = true;
  return true;
}

Var Var::leaf(Tensor value, bool wanted, std::string name) {
  auto slot = std::make_shared<GradSlot>();
  slot->name = std::move(name);
  slot->shape = value.shape();
  slot->dtype = value.dtype();
  slot->wanted = wanted;
  return {std::move(value), std::move(slot)};
}

const Tensor& Var::grad() const {
  ENSURE(slot->written, "no gradient of '", slot->name, "'");
  return slot->grad;
}

Var Tape::output(const Shape& shape, DType dtype, const Inputs& inputs) {
  bool wanted = false;
  for (const Var* input : inputs) wanted = wanted || input->wanted();
  return Var::leaf(Tensor::empty(*stream_, shape, dtype), wanted && recording());
}

void Tape::record(std::string_view op, const Inputs& inputs, const Var& y, Backward backward) {
  record(op, inputs, std::vector{y},
         [backward = std::move(backward)](Stream& stream, std::vector<Tensor> dy) {
           backward(stream, std::move(dy[0]));
         });
}

void Tape::record(std::string_view op, const Inputs& inputs, const std::vector<Var>& y,
                  BackwardOfParts backward) {
  if (watching_)
    for (const Var* input : inputs)
      if (!input->slot->name.empty()) check(input->value, *input->slot);
  bool wanted = false;
  for (const Var& part : y) {
    part.slot->name = prefix_ + std::string(op);
    part.slot->recorded = true;
    if (watching_) check(part.value, *part.slot);
    wanted = wanted || part.wanted();
  }
  if (!wanted) return;
  for (const Var* input : inputs)
    ENSURE(!input->wanted() || !input->slot->spent, "the way back of '", input->slot->name,
           "' is done: it is data from then on (Var::leaf of its value)");
  Node node{{}, {}, std::move(backward)};
  for (const Var* input : inputs) node.inputs.push_back(input->slot);
  for (const Var& part : y) node.outputs.push_back(part.slot);
  nodes_.push_back(std::move(node));
}

void Tape::beside(const std::function<void()>& work) {
  tessera::beside(*stream_, [this, work](Stream& second) {
    const struct Turn {
      Tape& tape;
      Stream* stream;
      ~Turn() { tape.stream_ = stream; }
    } turn{*this, std::exchange(stream_, &second)};
    work();
  });
}

void Tape::backward(const Var& loss) {
  ENSURE(loss.value.numel() == 1, "backward from ", loss.shape(), ", expected one element");
  Tensor seed = Tensor::empty(*stream_, loss.shape(), loss.value.dtype());
  fill(*stream_, seed, 1);
  backward_from(loss, std::move(seed));
}

void Tape::backward_from(const Var& y, Tensor dy) {
  ENSURE(dy.shape() == y.shape(), "gradient ", dy.shape(), " of a value ", y.shape());
  ENSURE(y.wanted(), "backward from '", y.slot->name,
         "', which depends on nothing that is trained");
  const auto made = [&](const Node& node) { return std::ranges::count(node.outputs, y.slot) > 0; };
  ENSURE(!y.slot->recorded || std::ranges::any_of(nodes_, made), "backward from '", y.slot->name,
         "', which is not on this tape: it is another's, or its way back is done");
  const struct Emptied {
    Tape& tape;
    ~Emptied() {
      while (!tape.nodes_.empty()) tape.drop();
    }
  } emptied{*this};
  if (!y.slot->adopt(dy)) add_bwd(*stream_, dy, y.slot->out(*stream_));
  dy = {};
  for (; !nodes_.empty(); drop()) back(nodes_.back());
  join(*stream_);
}

void Tape::drop() {
  for (const auto& output : nodes_.back().outputs) output->spent = true;
  nodes_.pop_back();
}

void Tape::back(Node& node) {
  const auto used = [](const auto& output) { return output->written; };
  if (std::ranges::none_of(node.outputs, used)) return;
  std::vector<Tensor> gradients;
  for (const auto& output : node.outputs) {
    if (output->beside) join(*stream_);
    gradients.push_back(output->written ? output->grad : Tensor{});
    if (output.use_count() == 1) output->grad = {};
  }
  node.backward(*stream_, std::move(gradients));
  if (!watching_) return;
  join(*stream_);
  for (const auto& input : node.inputs)
    if (input->wanted && input->written) check(input->grad, *input, "gradient of ");
}

// `what`: before the name.
void Tape::check(const Tensor& tensor, const GradSlot& slot, const char* what) {
  int64_t at = find_non_finite(*stream_, tensor);
  if (at < 0) return;
  const GradSlot* found = &slot;
  for (size_t i = 0; i < slot.parts.size(); at -= found->shape.numel(), ++i) {
    found = slot.parts[i].get();
    if (at < found->shape.numel()) break;
  }
  const std::string name = what + found->name;
  throw NonFiniteError(name,
                       concat("'", name, "' ", found->shape, " is not finite at element ", at));
}

}  // namespace tessera
