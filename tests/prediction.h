// What a GPU will need for the launches of a benchmark: their work is counted on the host model, on
// a part of the blocks, and divided by what a card can do. Not counted, as none of these may be the
// last one: the few KB that a launch's last block adds up (kernels/cuda/last_block.h).
#pragma once

#include "core/simt/trace.h"
#include "tests/bench.h"

namespace tessera {

// Work of one launch, of all its blocks.
struct LaunchWork {
  std::string kernel;  // as in the tables of kernels
  int64_t blocks, counted_blocks;
  int threads;
  size_t shared;         // bytes of a block
  double flops;          // of tensor cores; of an op without any: what its case says
  double read, written;  // bytes of memory: each once
  double l2;             // bytes that blocks load and store altogether
  double filled;         // bytes of shared memory, by cp.async
  double loads, stores;  // of vectors, by threads
  // Cards that launch it: 90, those of 9.0; 80, those below; 0, all.
  int only = 0;
  bool is_for(const Card& card) const { return !only || (only == 90) == (card.architecture >= 90); }
  // What tensor cores are given: 8x8 matrices of shared memory, passes of 128 bytes that these
  // take, and instructions of a warp, mma.sync or wgmma.
  struct Products {
    double matrices, passes, instructions;
  };
  Products products, mma;  // where it was counted, and below 9.0
  const Products& on(const Card& card) const { return card.architecture == 90 ? products : mma; }
};

// How launches are counted.
struct Counting {
  int blocks = 24;        // of each launch, at most
  int architecture = 90;  // whose tiles and instructions are chosen
  bool others = true;     // what cards below 9.0 do is counted, too
  static Counting beside_times(int architecture) {
    return {4, architecture, false};
  }  // there are many
};

// What goes before, and what is counted.
struct CountedCall {
  std::function<void()> before, call;
};
// Counts what a call launches. prepare: makes it and its tensors. flops: as its case says.
std::vector<LaunchWork> count_launches(const std::function<CountedCall(Stream&)>& prepare,
                                       double flops, const Counting& counting);
// A Linear's product, which is cuBLAS's, is taken from the case.
std::vector<LaunchWork> count_launches(const OpCase& c, Direction direction, const Mode& mode,
                                       const Counting& counting = {});
std::vector<LaunchWork> count_launches(const KernelCase& c, const Counting& counting = {});
// Of a whole step, issued one by one.
std::vector<LaunchWork> count_launches(const Training& training, const Mode& mode,
                                       const Counting& counting = {});

// Seconds that each limit implies; 0: not known, or none of it.
struct Prediction {
  double memory, l2, math, shared, issue;
  double waves;  // the longest of math, shared and issue, with the blocks in whole waves
  int registers, resident_blocks;  // the latter: at most, where registers are 0
  double seconds() const;          // the longest
  std::string limit() const;       // its name
};
Prediction predict(const LaunchWork& work, const Card& card, const KernelResources& resources,
                   const Mode& mode);

// Collects what is predicted and prints it as tables: of benchmarks, launches and times, and of the
// kernels of steps.
class PredictionReport {
 public:
  explicit PredictionReport(const std::string& resources_file) : resources_(resources_file) {}
  void add(const std::string& name, const Cost& cost, const Mode& mode,
           const std::vector<LaunchWork>& launches);
  // A whole step, whose launches are shown by kernels.
  void add_step(const std::string& name, const Cost& cost, const Mode& mode,
                const std::vector<LaunchWork>& launches);
  bool empty() const { return benchmarks_.empty(); }
  std::string text() const;

 private:
  void add_sums(const std::string& name, const Cost& cost, const Mode& mode,
                const std::vector<LaunchWork>& launches, const std::string& where);
  void add_launch(const LaunchWork& work, const Mode& mode);
  void add_time(const Card& card, const LaunchWork& work, const Prediction& p);

  KernelResources resources_;
  std::string benchmarks_, launches_, times_, steps_;
  int number_ = 0;
};

}  // namespace tessera
