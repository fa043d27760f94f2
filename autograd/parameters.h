// The parameters of a model, in one flat arena in a fixed order, with parallel arenas for gradients
// and Adam's moments: the optimizer, clipping and checkpoints are single passes.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "autograd/tape.h"
#include "core/precision.h"

namespace tessera {

// How a parameter lies in files, which follow PyTorch.
enum class FileLayout {
  Same,
  Filter,  // [K,R,S,C] here, [K,C,R,S] there
  // [C,2,2,K] here, [C,K,2,2] there: the very same permutation. PyTorch's initial bound of such a
  // filter and its bias is 1/sqrt(fan_in) with fan_in = 4K, not 4C.
  Transposed = Filter,
  Rearrange,  // [K,2,2,C] here, [K,4C,1,1] there, channel c*4 + p1*2 + p2: rearrange + 1x1
              // projection
};

// Uniform in [-bound, bound], plus `constant`.
struct Init {
  float bound = 0, constant = 0;
};

struct Parameter {
  std::string name;  // PyTorch's
  FileLayout layout;
  Init init;
  int64_t upsampled;   // first channels of a 3x3 filter, that read an upsampled image
                       // (upcat_conv2d)
  int64_t offset = 0;  // of the first element in the arenas
  Tensor master;       // the value: a slice of Parameters::values
  Var var;             // what operations read: the master, or its bf16 copy; and the gradient

  // Filters are read by products, in the type of activations; vectors are always read as they are.
  bool is_filter() const { return var.slot->shape.rank() > 1; }

  Shape file_shape() const;
};

// Parameters, added one by one, that lie next to each other: together one matrix [sum of rows, C],
// or one vector, for operations that read them at once.
struct ParameterStack {
  Var var;  // as a parameter's, whose slot knows theirs
  std::vector<Parameter*> members = {};
  int64_t offset = 0;  // of the first one
};

// What a BatchNorm keeps beside its parameters: saved with them, but not trained.
struct RunningStatistics {
  std::string name;  // of the norm; in files NAME.running_mean, NAME.running_var, ..
  int64_t channels;
  int64_t offset;    // of the mean in Parameters::statistics
  Tensor mean, var;  // [C], slices of it: 0 and 1 at the start
};

// Makes the forms for data gradients that kernels of this device read of a filter w, of which
// `upsampled` channels read an upsampled image, and adds them to those that turn_filters is to
// fill.
void add_turned_forms(Stream& stream, const Tensor& w, int64_t upsampled, FilterForms& forms,
                      std::vector<TurnedFilter>& turned);

class Parameters {
 public:
  // Adds a parameter; addresses stay valid. Before allocate(). Throws when the name is taken, or
  // its rows are not those of the stack.
  Parameter& add(std::string name, const Shape& shape, Init init, FileLayout layout,
                 int64_t upsampled = 0, ParameterStack* stack = nullptr);
  // Adds a stack [0,C] or [0] for add() to fill; the address stays valid.
  ParameterStack& add_stack(std::string name, const Shape& empty);
  // Adds the statistics of a BatchNorm over C channels; the address stays valid. Before allocate().
  RunningStatistics& add_statistics(std::string name, int64_t C);

  // Makes the arenas and draws the initial values from (seed, position of the parameter).
  void allocate(Stream& stream, const Precision& precision, uint64_t seed);
  // Makes the arenas of gradients and of Adam's moments, zero, and the forms of filters that data
  // gradients read. From here on gradients are wanted.
  void prepare_training(Stream& stream);

  const std::deque<Parameter>& list() const { return list_; }
  std::deque<Parameter>& list() { return list_; }
  int64_t count() const;  // elements, without padding
  const std::deque<RunningStatistics>& running() const { return running_; }

  // After the values were written: brings the copies up to date.
  void refresh_copies(Stream& stream);
  // The part of it that the optimizer's own pass does not do: the forms of filters.
  void refresh_forms(Stream& stream);

  // The next backward pass overwrites gradients instead of adding to them.
  void clear_gradients();
  // Zeroes the gradients that no backward pass has written.
  void finish_gradients(Stream& stream);

  // Flat, with padding between parameters and stacks of them (always zero). Undefined before they
  // are allocated.
  Tensor values, grads, m, v;
  Tensor copies;  // bf16, where activations are: what the products read; else undefined

  // The means and variances of all BatchNorms; undefined when there are none. In the type of
  // `values`, and written by training passes.
  Tensor statistics;
  int64_t batches = 0;  // that they have seen: whoever trains counts

 private:
  int64_t place(int64_t count);

  std::deque<Parameter> list_;
  std::deque<ParameterStack> stacks_;  // behind all other parameters in the arenas
  std::deque<RunningStatistics> running_;
  std::vector<PhasedFilter> phased_;  // what is summed after each update
  std::vector<TurnedFilter> turned_;  // and then turned around
  int64_t statistics_size_ = 0;
  int64_t size_ = 0;  // of an arena, elements
};

// Adam over all parameters (kernels.h). The number of updates so far is part of its state.
class Adam {
 public:
  Adam(Stream& stream, Parameters& parameters, const AdamSpec& spec)
      : stream_(stream),
        parameters_(parameters),
        spec_(spec),
        norm_(Tensor::empty(stream, {1}, parameters.grads.dtype())),
        latch_(Tensor::zeros(stream, {1}, DType::i64)) {}
  Adam(const Adam&) = delete;
  Adam& operator=(const Adam&) = delete;

  // Updates the parameters, unless the gradients or the loss [1] of this or an earlier update were
  // not finite. Does not wait for the stream.
  void update(const Tensor& loss = {});
  // The same for a step that is recorded: what depends on its number is in `now` and `factors`
  // (AdamTensors), and the caller counts.
  void issue(const Tensor& loss, const Tensor& now, const Tensor& factors);
  const AdamSpec& spec() const { return spec_; }
  // The first step whose update was left out, or 0. Waits for the stream.
  int64_t poll() const { return latch_.to_vector<int64_t>(stream_)[0]; }

  // Updates work again.
  void clear_latch() { latch_.zero(stream_); }

  int64_t step = 0;

 private:
  Stream& stream_;
  Parameters& parameters_;
  AdamSpec spec_;
  Tensor norm_, latch_;  // norm_: of all gradients
};

}  // namespace tessera
