// metrics.jsonl: one JSON object a line, for the steps and for the evaluations.
#pragma once

#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "apps/evaluate.h"

namespace tessera {

struct StepMetrics {
  int64_t step, epoch;
  double loss;  // of this step
  double seconds_per_step, images_per_second;
  size_t peak_bytes;
};

class Metrics {
 public:
  // Keeps the lines of an existing file up to `step`: later ones will be written again, and a torn
  // last line is dropped. Throws InputError naming the path.
  Metrics(std::filesystem::path path, int64_t step);
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;
  ~Metrics();

  void add(const StepMetrics& metrics);
  void add(int64_t step, const std::vector<EvalPoint>& points);
  bool has_evaluation(int64_t step) const { return evaluated_.contains(step); }

 private:
  void append(const std::string& line);

  std::filesystem::path path_;
  int fd_;
  std::set<int64_t> evaluated_;
};

}  // namespace tessera
