// Times one op of the case table in one direction: the way back alone, too, for inputs of one role.
#include <algorithm>

#include "autograd/parameters.h"
#include "tests/bench.h"
#include "tests/prediction.h"

namespace tessera {
namespace {

// Whether the gradient of an input is computed in this direction.
bool wanted(const OpCase& c, Direction direction, size_t input) {
  if (input >= c.inputs.size() - size_t(c.constants)) return false;
  switch (direction) {
    case Direction::Forward:
      return false;
    case Direction::Backward:
      return true;
    case Direction::DataGradient:
      return role_of(c, input) == Role::Activation;
    case Direction::WeightGradient:
      return role_of(c, input) != Role::Activation;
  }
  return false;
}

double bytes_of(const Shape& shape, DType dtype) {
  return double(shape.numel()) * double(size_of(dtype));
}

// y of an op with one weight: conv2d, upcat_conv2d, conv_transpose2d, linear.
Shape product_of(const OpCase& c) {
  if (c.conv) return c.conv->y();
  const Shape& x = c.inputs[0];
  if (c.op == "conv_transpose2d") return {x[0], 2 * x[1], 2 * x[2], c.inputs[1][3]};
  ENSURE(c.op == "linear", "bench: what is the output of ", c.op, "?");
  return {x[0], c.inputs[1][0]};
}

}  // namespace

// A gradient of a product costs as many operations as the product, and moves dy, the other factor
// and itself. The table's bytes are those of f32.
Cost cost_of(const OpCase& c, Direction direction, DType storage) {
  if (direction == Direction::Forward || direction == Direction::Backward) {
    Cost cost = direction == Direction::Forward ? c.forward : c.backward;
    cost.bytes *= double(size_of(storage)) / 4;
    return cost;
  }
  Cost cost{c.forward.flops, bytes_of(product_of(c), storage)};
  for (size_t i = 0; i < c.inputs.size(); ++i)
    cost.bytes += bytes_of(c.inputs[i], wanted(c, direction, i) ? gradient_dtype(c, i, storage)
                                                                : value_dtype(c, i, storage));
  return cost;
}

const char* name_of(Direction direction) {
  switch (direction) {
    case Direction::Forward:
      return "forward";
    case Direction::Backward:
      return "backward";
    case Direction::DataGradient:
      return "dgrad";
    case Direction::WeightGradient:
      return "wgrad";
  }
  return "?";
}

std::vector<Direction> directions(const OpCase& c) {
  if (std::ranges::count(c.roles, Role::Weight) != 1)
    return {Direction::Forward, Direction::Backward};
  return {Direction::Forward, Direction::DataGradient, Direction::WeightGradient};
}

OpRun::OpRun(Stream& stream, const OpCase& c, Direction direction, const Mode& mode)
    : stream_(stream), case_(c), backward_(direction != Direction::Forward) {
  stream.math = mode.arithmetic.math;
  const DType storage = mode.arithmetic.storage;
  for (size_t i = 0; i < c.inputs.size(); ++i) {
    Var input = Var::leaf(random_tensor(stream, c.inputs[i], value_dtype(c, i, storage)),
                          wanted(c, direction, i));
    input.slot->dtype = gradient_dtype(c, i, storage);
    inputs_.push_back(std::move(input));
  }
  keep_forms();
  forward();
  if (backward_) dy_ = random_tensor(stream, y_.shape(), y_.value.dtype());
}

// Of filters, as a model's parameters keep them: made once a step.
void OpRun::keep_forms() {
  std::vector<TurnedFilter> turned;
  int64_t upsampled = case_.upsampled;
  for (size_t i = 0; i < case_.roles.size(); ++i) {
    const Tensor& w = inputs_[i].value;
    FilterForms& forms = inputs_[i].forms;
    if (case_.roles[i] != Role::Weight || w.dtype() != DType::bf16 || w.rank() != 4) continue;
    if (upsampled && w.dim(1) == 3) {
      forms.phases = Tensor::empty(stream_, {w.dim(0), 4, 4, upsampled}, w.dtype());
      upcat_phases(stream_, std::vector<PhasedFilter>{{w, forms.phases}});
    }
    if (backward_) add_turned_forms(stream_, w, upsampled, forms, turned);
    upsampled = 0;
  }
  turn_filters(stream_, turned);
}

void OpRun::forward() {
  for (Var& input : inputs_) input.slot->written = false;
  tape_.emplace(stream_, backward_ ? Tape::Mode::Train : Tape::Mode::Inference);
  y_ = case_.apply(*tape_, inputs_);
}

void OpRun::before() {
  if (backward_) forward();
}

void OpRun::run() { backward_ ? tape_->backward_from(y_, dy_) : forward(); }

double bench_op(benchmark::State& state, Session& session, const OpCase& c, Direction direction,
                const Mode& mode) {
  double seconds = 0;
  {
    OpRun op(session.stream(), c, direction, mode);
    seconds = session.measure(
        state, cost_of(c, direction, mode.arithmetic.storage), mode, [&] { op.run(); },
        [&] { op.before(); }, session.rival(c, direction, mode.arithmetic));
  }
  if (session.predicts())
    session.report(state, count_launches(c, direction, mode, session.counting()), mode);
  session.release_memory();
  return seconds;
}

}  // namespace tessera
