// What GPUs can do, and what kernels take of them: the figures that predictions are made from.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace tessera {

// Of one multiprocessor. Everywhere: 65,536 registers, 128 bytes of shared memory a clock.
struct MultiprocessorLimits {
  int architecture;  // 10 * major + minor
  int warps, blocks;
  size_t shared;  // bytes
};
// Null for an architecture that is not known here.
const MultiprocessorLimits* limits_of(int architecture);

// Bytes/s of memory and of the L2 cache, flop/s without sparsity, sums in f32, of f32 without
// tensor cores, tf32 and bf16, and multiprocessors and clock/s with which these are computed.
struct Card {
  const char* name;
  int architecture, multiprocessors;
  double clock, bandwidth, l2_bandwidth;
  bool l2_estimated;  // no data sheet has it, and it was not measured
  size_t l2_bytes;
  double f32, tf32, bf16;
};
// H200 and H100 (SXM, 80 GB): data sheets (memory, rates), H100 whitepaper (132 multiprocessors,
// 1.83 GHz for tensor cores, 50 MB of L2 cache); their L2 bandwidth is what `gpu-check primitives`
// measured on an H200, 16 KB to each multiprocessor in 563 clocks (docs/gpu-runs.md); an H100's is
// estimated as the same. A100 80 GB: data sheet and whitepaper (108, 1.41 GHz, 5,120 bytes a clock
// of a 40 MB L2 cache). RTX 4090: Ada whitepaper (128, 2.52 GHz, 72 MB); its L2 bandwidth is
// estimated as 2,048 bytes a clock.
inline constexpr Card kCards[] = {
    {"H200", 90, 132, 1.83e9, 4.8e12, 3840 * 1.83e9, false, 50 << 20, 67e12, 494e12, 989e12},
    {"H100", 90, 132, 1.83e9, 3.35e12, 3840 * 1.83e9, true, 50 << 20, 67e12, 494e12, 989e12},
    {"A100", 80, 108, 1.41e9, 2.039e12, 5120 * 1.41e9, false, 40 << 20, 19.5e12, 156e12, 312e12},
    {"RTX4090", 89, 128, 2.52e9, 1.008e12, 2048 * 2.52e9, true, 72 << 20, 82.6e12, 82.6e12,
     165.2e12}};

// Blocks of `threads` threads and `shared` bytes that a multiprocessor holds at once, by the rules
// of cuda_occupancy.h. registers: of a thread; 0: not known, and not counted.
int resident_blocks(const MultiprocessorLimits& limits, int threads, size_t shared, int registers);

// "f_kernel<Image<bf16>>" of "conv::f_kernel<conv::Image<bf16>>": compilers differ in which
// namespaces they print.
std::string bare_name(std::string name);

// What nvcc made of the kernels: the tables of tests/kernel_resources.py and tests/kernel_sass.py.
// An architecture runs the code of the nearest one below it with the same major number.
class KernelResources {
 public:
  // 0: not known.
  struct Row {
    std::string kernel;  // bare_name()
    int architecture = 0;
    int registers = 0;     // of a thread
    int instructions = 0;  // as they stand there
    // Of the main loop: the one with the most mma.sync, else with the most accesses of memory by
    // vectors. Its instructions, and among them mma.sync, vectors stored and loaded.
    int loop = 0, products = 0, stores = 0, loads = 0;
    int outside = 0, stores_outside = 0, loads_outside = 0;  // the same of all such loops' outside
  };
  // path: kernel-resources.md; kernel-instructions.md is looked for beside it. Nothing is known
  // when a file is missing. Throws InputError for one that is no such table.
  explicit KernelResources(const std::string& path);
  // kernel-resources.md of the build that this program is part of.
  static std::string default_file();

  // Of the first kernel whose name has all these parts.
  Row find(int architecture, const std::vector<std::string>& parts) const;

 private:
  void read(const std::string& path, const std::vector<std::string>& columns,
            const std::function<void(Row&, const std::vector<int>&)>& set);

  std::map<std::pair<std::string, int>, Row> rows_;  // by name and architecture
};

}  // namespace tessera
