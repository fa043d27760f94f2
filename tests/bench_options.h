// The command line of bench: its own flags; all others are Google Benchmark's.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/device.h"

namespace tessera {

struct BenchOptions {
  DeviceType device = DeviceType::cpu;
  int threads = 0;
  double seconds = 0.2;
  bool libraries = true, predictions = true, tiny = false;
  std::string cases;                 // "benchmarks", "tests", or as the device has it
  std::string predict;               // only print predictions for names that match; empty: measure
  bool plan = false;                 // only print what training steps hold on a GPU
  bool tiles = false, tune = false;  // only print or tune the convolutions' tiles
  std::string tiles_file, resources_file;
  std::string save, against;      // files of a run (bench_compare.h); empty: none
  std::vector<std::string> rest;  // Google Benchmark's

  bool lists() const;         // only lists the names of benchmarks
  bool prints_table() const;  // its report is for people, not json or csv
};

// Nothing when it only asked for help. Throws UsageError for flags that do not go together.
std::optional<BenchOptions> parse_bench_options(int argc, char** argv);

}  // namespace tessera
