// What a run of bench measured, in a file, and two runs side by side.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace tessera {

struct BenchRun {
  struct Time {
    std::string name;  // of the benchmark
    double seconds;
  };
  std::string device;  // "NVIDIA H200", or the model of a CPU
  int threads = 0;     // of the CPU; 0 where a GPU computes
  std::vector<std::string> precisions;
  std::map<std::string, double> peaks;  // Peaks::figures()
  std::vector<Time> times;              // as they were run

  // Of repetitions of a benchmark the shortest is kept.
  void add(const std::string& name, double seconds);
};

// Throws InputError when save() could not write this file.
void expect_writable(const std::filesystem::path& file);
// Replaces `file`, atomically.
void save(const BenchRun& run, const std::filesystem::path& file);
// Throws InputError, one line that names the file, when it is not what save() writes.
BenchRun load_run(const std::filesystem::path& file);

// In what two runs differ but should not: empty, or one line.
std::string difference(const BenchRun& then, const BenchRun& now);
// Peaks, a Markdown table of the benchmarks that both have, as `now` ran them, and the geometric
// mean of the ratios.
std::string comparison(const BenchRun& then, const BenchRun& now);

}  // namespace tessera
