// Bank conflicts of ldmatrix and stmatrix, counted: shared memory has 8 groups of 4 banks of 4
// bytes, and a pass moves one 16-byte row of each. A matrix of 8 rows takes one pass when its rows
// are in 8 different groups, and more when two different rows are in one.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace tessera::simt {

struct MatrixTraffic {
  std::atomic<uint64_t> matrices = 0, passes = 0;
};
inline MatrixTraffic matrix_traffic;  // of the process

// row(i), i = 0 .. 7: the address of a matrix's row.
template <class Row>
void count_matrix(const Row& row) {
  int rows_of_group[8] = {}, passes = 0;
  for (int i = 0; i < 8; ++i) {
    const auto address = reinterpret_cast<uintptr_t>(row(i));
    bool seen = false;  // a row that is asked for twice is read once
    for (int j = 0; j < i; ++j) seen |= address == reinterpret_cast<uintptr_t>(row(j));
    if (!seen) passes = std::max(passes, ++rows_of_group[address / 16 % 8]);
  }
  matrix_traffic.matrices += 1;
  matrix_traffic.passes += uint64_t(passes);
}

}  // namespace tessera::simt
