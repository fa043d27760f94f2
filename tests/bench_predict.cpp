// What cards need at least for a benchmark: a prediction that a measurement stands beside.
#include <fmt/format.h>

#include <algorithm>

#include "tests/bench.h"

namespace tessera {

double predicted_seconds(const Card& card, const Cost& cost, const Mode& mode) {
  const bool tensor_cores = mode.arithmetic.math == Math::tf32;
  const double peak = mode.arithmetic.storage == DType::bf16 ? card.bf16
                      : tensor_cores                         ? card.tf32
                                                             : card.f32;
  return std::max(cost.flops / peak, cost.bytes / card.bandwidth);
}

std::string prediction_row(const std::string& name, const Cost* cost, const Mode& mode) {
  std::string row =
      cost ? fmt::format("| {} | {:.1f} | {:.2f} |", name, cost->flops / 1e6, cost->bytes / 1e6)
           : fmt::format("| {} | Mflop | MB |", name);
  std::string rule = "\n| --- | ---: | ---: |";
  for (const Card& card : kCards) {
    row += cost ? fmt::format(" {:.1f} |", predicted_seconds(card, *cost, mode) * 1e6)
                : fmt::format(" {}, us |", card.name);
    rule += " ---: |";
  }
  return cost ? row + " |" : row + " measured |" + rule + " --- |";
}

}  // namespace tessera
