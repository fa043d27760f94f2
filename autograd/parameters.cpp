#include "autograd/parameters.h"

#include "core/rng.h"

namespace tessera {
namespace {

constexpr int64_t kAlign = 16;  // elements: parameters start on 64 bytes

template <class T>
void draw(Stream& stream, Tensor& value, const Init& init, const RngKey& key) {
  std::vector<T> host(static_cast<size_t>(value.numel()));
  for (size_t i = 0; i < host.size(); ++i) {
    const uint32_t word = random4(key, uint32_t(i / 4))[i % 4];
    host[i] = T(init.constant + init.bound * (2.0f * uniform01(word) - 1.0f));
  }
  value.copy_from(stream, std::as_bytes(std::span(host)));
}

Var without_value(std::string name, const Shape& shape) {
  Var var;
  var.slot = std::make_shared<GradSlot>();
  var.slot->name = std::move(name);
  var.slot->shape = shape;
  return var;
}

Shape with_rows(const Shape& shape, int64_t rows) {
  std::vector<int64_t> sizes(shape.sizes().begin(), shape.sizes().end());
  sizes.at(0) = rows;
  return Shape(std::span<const int64_t>(sizes));
}

}  // namespace

// Turned filters are read by kernels of tensor cores: of 3x3 filters whose channels come in packs.
// (With stride 2, in one variant, nobody reads them: a filter does not know its stride.)
void add_turned_forms(Stream& stream, const Tensor& w, int64_t upsampled, FilterForms& forms,
                      std::vector<TurnedFilter>& turned) {
  if (w.dtype() != DType::bf16 || w.rank() != 4 || w.dim(1) != 3 || w.dim(2) != 3 || w.dim(0) % 8 ||
      w.dim(3) % 8 || upsampled % 8 || stream.device().type() == DeviceType::cpu ||
      stream.device().info().capability < 80)
    return;
  const auto turn = [&](const Tensor& from, int64_t channels, Tensor& to) {
    to = Tensor::empty(stream, {channels, from.dim(1), from.dim(2), from.dim(0)}, from.dtype());
    turned.push_back({from, to});
  };
  turn(w, w.dim(3) - upsampled, forms.turned);
  if (forms.phases) turn(forms.phases, upsampled, forms.turned_phases);
}

Shape Parameter::file_shape() const {
  const Shape& s = var.slot->shape;
  if (layout == FileLayout::Filter) return {s[0], s[3], s[1], s[2]};
  if (layout == FileLayout::Rearrange) return {s[0], s[3] * 4, 1, 1};
  return s;
}

Parameter& Parameters::add(std::string name, const Shape& shape, Init init, FileLayout layout,
                           int64_t upsampled, ParameterStack* stack) {
  ENSURE(!values, "parameter '", name, "' comes after allocate()");
  for (const Parameter& other : list_)
    ENSURE(other.name != name, "two parameters are called '", name, "'");
  if (stack)
    ENSURE(with_rows(shape, stack->var.slot->shape[0]) == stack->var.slot->shape, "parameter '",
           name, "' is ", shape, " in a stack ", stack->var.slot->shape);
  list_.push_back({name, layout, init, upsampled, 0, {}, without_value(name, shape)});
  Parameter& added = list_.back();
  if (stack) {
    Shape& all = stack->var.slot->shape;
    all = with_rows(all, all[0] + shape[0]);
    stack->members.push_back(&added);
    stack->var.slot->parts.push_back(added.var.slot);
  } else {
    added.offset = place(shape.numel());
  }
  return added;
}

ParameterStack& Parameters::add_stack(std::string name, const Shape& empty) {
  stacks_.push_back({without_value(std::move(name), empty)});
  return stacks_.back();
}

// The next elements of the arenas.
int64_t Parameters::place(int64_t count) {
  const int64_t offset = size_;
  size_ += ceil_div(count, kAlign) * kAlign;
  return offset;
}

RunningStatistics& Parameters::add_statistics(std::string name, int64_t C) {
  ENSURE(!values, "the statistics of '", name, "' come after allocate()");
  running_.push_back({std::move(name), C, statistics_size_, {}, {}});
  statistics_size_ += 2 * C;
  return running_.back();
}

void Parameters::allocate(Stream& stream, const Precision& precision, uint64_t seed) {
  ENSURE(!values, "the parameters are allocated already");
  for (ParameterStack& stack : stacks_) {
    int64_t next = stack.offset = place(stack.var.slot->shape.numel());
    for (Parameter* p : stack.members) {
      p->offset = next;
      next += p->var.slot->shape.numel();
    }
  }
  values = Tensor::zeros(stream, {size_}, precision.master);
  if (precision.storage == DType::bf16)
    copies = Tensor::zeros(stream, values.shape(), precision.storage);
  uint32_t position = 0;
  for (Parameter& p : list_) {
    p.master = values.slice(p.offset, p.var.slot->shape);
    p.var.value = copies && p.is_filter() ? copies.slice(p.offset, p.var.slot->shape) : p.master;
    p.var.slot->dtype = precision.master;
    const Shape& shape = p.var.slot->shape;
    if (copies && p.upsampled) {
      p.var.forms.phases = Tensor::empty(stream, {shape[0], 4, 4, p.upsampled}, copies.dtype());
      phased_.push_back({p.master, p.var.forms.phases});
    }
    const RngKey key{seed, 0, position++, Purpose::init};
    precision.master == DType::f64 ? draw<double>(stream, p.master, p.init, key)
                                   : draw<float>(stream, p.master, p.init, key);
  }
  for (ParameterStack& stack : stacks_) {
    const Shape& shape = stack.var.slot->shape;
    stack.var.value = (copies && shape.rank() > 1 ? copies : values).slice(stack.offset, shape);
    stack.var.slot->dtype = precision.master;
  }
  refresh_copies(stream);
  if (statistics_size_ == 0) return;
  statistics = Tensor::zeros(stream, {statistics_size_}, precision.master);
  for (RunningStatistics& norm : running_) {
    norm.mean = statistics.slice(norm.offset, {norm.channels});
    norm.var = statistics.slice(norm.offset + norm.channels, {norm.channels});
    fill(stream, norm.var, 1);
  }
}

void Parameters::prepare_training(Stream& stream) {
  ENSURE(values && !grads, "prepare_training() comes once, after allocate()");
  grads = Tensor::zeros(stream, values.shape(), values.dtype());
  m = Tensor::zeros(stream, values.shape(), values.dtype());
  v = Tensor::zeros(stream, values.shape(), values.dtype());
  for (Parameter& p : list_) {
    p.var.slot->grad = grads.slice(p.offset, p.var.slot->shape);
    p.var.slot->wanted = true;
    add_turned_forms(stream, p.var.value, p.upsampled, p.var.forms, turned_);
  }
  turn_filters(stream, turned_);
  for (ParameterStack& stack : stacks_) {
    stack.var.slot->grad = grads.slice(stack.offset, stack.var.slot->shape);
    stack.var.slot->wanted = true;
  }
}

int64_t Parameters::count() const {
  int64_t sum = 0;
  for (const Parameter& p : list_) sum += p.var.slot->shape.numel();
  return sum;
}

void Parameters::refresh_copies(Stream& stream) {
  if (copies) copy_rounded(stream, values, copies);
  refresh_forms(stream);
}

void Parameters::refresh_forms(Stream& stream) {
  upcat_phases(stream, phased_);
  turn_filters(stream, turned_);
}

void Parameters::clear_gradients() {
  for (Parameter& p : list_) p.var.slot->written = p.var.slot->beside = false;
  for (ParameterStack& stack : stacks_) stack.var.slot->written = false;
}

void Parameters::finish_gradients(Stream& stream) {
  for (Parameter& p : list_)
    if (!p.var.slot->written) p.var.slot->grad.zero(stream);
}

void Adam::update(const Tensor& loss) {
  issue(loss, {}, {});
  ++step;
}

void Adam::issue(const Tensor& loss, const Tensor& now, const Tensor& factors) {
  grad_norm(stream_, parameters_.grads, norm_);
  adam_step(stream_, spec_, step + 1,
            {parameters_.grads, norm_, parameters_.values, parameters_.m, parameters_.v,
             parameters_.copies, latch_, loss, now, factors});
  parameters_.refresh_forms(stream_);
}

}  // namespace tessera
