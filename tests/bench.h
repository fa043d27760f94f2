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

// The modes that the kernels of a device have.
std::vector<Mode> modes_of(DeviceType type);

// What the device reaches at best, measured in the same run; 0 or missing: not measured.
struct Peaks {
  double copy = 0;                       // bytes/s, reads and writes
  std::map<std::string, double> matmul;  // flop/s of a large product, by Mode::name
  // What was measured: "copy GB/s", "matmul f32 GFLOP/s".
  std::map<std::string, double> figures() const;
};

// Seconds that "cuDNN" needs for the same; 0: there is no such library or operation.
struct Rival {
  const char* name = "";
  double seconds = 0;
};

struct LaunchWork;
struct Counting;

class Session {
 public:
  // budget: seconds of measured work of each benchmark. libraries: compare with NVIDIA's.
  // resources_file: where KernelResources are, for predictions beside what is measured on a GPU or
  // the host model; empty: none, and no launches are counted for anything.
  Session(DeviceType type, int threads, double budget, bool libraries,
          const std::string& resources_file);

  Stream& stream() { return *stream_; }
  std::shared_ptr<Device> device() const { return device_; }

  // What the library that has such an operation needs for it.
  Rival rival(const OpCase& c, Direction direction, const Arithmetic& arithmetic);

  // Measures `call` (after `before`, which is not measured) and reports and returns its median, and
  // its rates.
  double measure(benchmark::State& state, const Cost& cost, const Mode& mode,
                 const std::function<void()>& call, const std::function<void()>& before = nullptr,
                 const Rival& rival = {});
  // Reports rates, and the shares of the peaks that they are.
  void report_rates(benchmark::State& state, const Cost& cost, const Mode& mode,
                    double seconds) const;
  // Whether the time that launches imply stands beside what is measured, and says so.
  bool predicts() const { return resources_ && device_->type() != DeviceType::cpu; }
  bool counts() const { return resources_.has_value(); }
  Counting counting() const;
  void report(benchmark::State& state, const std::vector<LaunchWork>& launches, const Mode& mode);
  // Measures steps of training one behind the other, by seconds_per_step(), and returns a step's.
  double measure_steps(benchmark::State& state, const std::function<void()>& step);

  // Measures the peaks and tells them to Google Benchmark; not on the host model, or without a
  // budget.
  void measure_peaks();
  // Waits, and gives back what is not in use: each benchmark begins without memory.
  void release_memory();
  const Peaks& peaks() const { return peaks_; }
  double budget() const { return budget_; }

 private:
  std::shared_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Timer> timer_;
  double budget_;
  std::unique_ptr<CudnnLibrary> cudnn_;
  std::unique_ptr<CublasLibrary> cublas_;
  std::optional<KernelResources> resources_;
  Peaks peaks_;
};

// "NVIDIA H200"; of a CPU its model, if the system tells.
std::string machine_name(const Device& device);

// Seconds that a card needs at least: to compute or to move the bytes, whichever takes longer.
double least_seconds(const Card& card, const Cost& cost, const Mode& mode);

// A network of tests/op_cases.h's kind and a batch, for whole steps.
struct Training {
  const char* name;
  int64_t side, base, batch;
};
std::vector<Training> trainings(DeviceType type, bool tiny);
// The flop of a step's products, and the bytes of its launches, each one's tensors once: on
// the GPU that they were counted for, or of 9.0.
Cost cost_of(const Training& training, const std::vector<LaunchWork>& launches);
// Forward, loss, backward and Adam on one batch, without reading data; returns the seconds of a
// step. A device of its own like the session's for each: peak memory is the step's.
double bench_training(benchmark::State& state, Session& session, const Training& training,
                      const Mode& mode);
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

// One direction of an op on inputs of its own. before() makes what run() needs each time.
class OpRun {
 public:
  OpRun(Stream& stream, const OpCase& c, Direction direction, const Mode& mode);
  void before();
  void run();

 private:
  void keep_forms();
  void forward();

  Stream& stream_;
  const OpCase& case_;
  bool backward_;
  std::vector<Var> inputs_;
  std::optional<Tape> tape_;
  Var y_;
  Tensor dy_;
};
// Returns the seconds.
double bench_op(benchmark::State& state, Session& session, const OpCase& c, Direction direction,
                const Mode& mode);

// A function of the catalogue that is not an op of the tape.
struct KernelCase {
  std::string function, name;  // "make_batch", "lesson [32,64,64,1]"
  Mode mode;
  Cost cost;
  // Makes its arguments; the result computes it once.
  std::function<std::function<void()>(Stream&)> prepare;
};
// At the sizes of the models and over a sweep, or at tiny ones.
std::vector<KernelCase> kernel_cases(bool tiny);
double bench_kernel(benchmark::State& state, Session& session, const KernelCase& c);

}  // namespace tessera
