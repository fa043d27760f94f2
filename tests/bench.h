// What the parts of `bench` share: the device and what its figures are compared with.
#pragma once

#include <benchmark/benchmark.h>

#include <map>
#include <optional>

#include "tests/cuda_baselines.h"
#include "tests/gpu_cards.h"
#include "tests/op_cases.h"

namespace tessera {

// How a benchmark computes.
struct Mode {
  const char* name;  // "bf16"
  Arithmetic arithmetic;
  Precision precision() const {
    return {arithmetic.storage, arithmetic.math, master_of(arithmetic.storage)};
  }
};
inline constexpr Mode kF32{"f32", {DType::f32, Math::f32}};
inline constexpr Mode kTf32{"tf32", {DType::f32, Math::tf32}};
inline constexpr Mode kBf16{"bf16", {DType::bf16, Math::f32}};

// Seconds that "cuDNN" needs for the same; 0: there is no such library or operation.
struct Rival {
  const char* name = "";
  double seconds = 0;
};

class Session {
 public:
  // budget: seconds of measured work of each benchmark. libraries: compare with NVIDIA's.
  Session(DeviceType type, int threads, double budget, bool libraries);

  Stream& stream() { return *stream_; }
  std::shared_ptr<Device> device() const { return device_; }

  // What the library that has such an operation needs for it.
  Rival rival(const OpCase& c, Direction direction, const Arithmetic& arithmetic);

  // Measures `call` (after `before`, which is not measured) and reports its median and rates.
  void measure(benchmark::State& state, const Cost& cost, const Mode& mode,
               const std::function<void()>& call, const std::function<void()>& before = nullptr,
               const Rival& rival = {});
  // Measures steps of training one behind the other, by seconds_per_step().
  void measure_steps(benchmark::State& state, const std::function<void()>& step);

  // Measures what the GPU can do at best and tells it to Google Benchmark; nothing elsewhere, or
  // without a budget.
  void measure_peaks();

 private:
  std::shared_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Timer> timer_;
  double budget_;
  std::unique_ptr<CudnnLibrary> cudnn_;
  std::unique_ptr<CublasLibrary> cublas_;
  double copy_bandwidth_ = 0;             // bytes/s, reads and writes; 0: not measured
  std::map<std::string, double> matmul_;  // flop/s of a large product, by Mode::name
};

// Seconds that a card needs at least: to compute or to move the bytes, whichever takes longer.
double predicted_seconds(const Card& card, const Cost& cost, const Mode& mode);
// One row of a Markdown table of these, in microseconds; a null cost: the table's head.
std::string prediction_row(const std::string& name, const Cost* cost, const Mode& mode);

// A network of tests/op_cases.h's kind and a batch, for whole steps.
struct Training {
  const char* name;
  int64_t side, base, batch;
};
std::vector<Training> trainings(DeviceType type, bool tiny);
// Forward, loss, backward and Adam on one batch, without reading data. A device of its own for
// each: peak memory is the step's.
void bench_training(benchmark::State& state, DeviceType type, int threads, double budget,
                    const Training& training, const Mode& mode);
// Prints a Markdown table of what recorded steps hold on a GPU (sm_90), in MB: the host model
// records them without computing anything.
void print_plans();
// Prints the tiles in force for the lesson's 3x3 convolutions, on the GPU at hand or on the cards
// of gpu_cards.h. resources_file: where KernelResources are.
void print_tiles(const std::string& resources_file);
// Times all tiles of these convolutions, or of tiny ones, and writes the table of the fastest.
// budget: seconds of each. Returns the program's status: 3 without a GPU.
int tune_tiles(DeviceType type, double budget, bool tiny, const std::string& file);

// Which directions of a case are timed one by one.
std::vector<Direction> directions(const OpCase& c);
const char* name_of(Direction direction);
// Flops and bytes of one direction with activations stored as `storage`.
Cost cost_of(const OpCase& c, Direction direction, DType storage);
void bench_op(benchmark::State& state, Session& session, const OpCase& c, Direction direction,
              const Mode& mode);

// A function of the catalogue that is not an op of the tape.
struct KernelCase {
  std::string name;
  // Makes its arguments; the result computes it once.
  std::function<std::function<void()>(Stream&)> prepare;
  Cost cost;
};
// At the sizes of the models and over a sweep, or at tiny ones.
std::vector<KernelCase> kernel_cases(bool tiny);

}  // namespace tessera
