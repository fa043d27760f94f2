// The check of the primitives: a tiny kernel for each instruction of kernels/cuda/ptx and for each
// warp and block operation of CUDA's that core/simt emulates. On the host model they are compared
// with their definitions in plain loops (tests/test_ptx_primitives.cpp), on a GPU with the host
// model (check_primitives.cpp).
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

namespace tessera {

// Compiled from primitives*.cu, once for GPUs and once for the host model.
struct PrimitiveKernel {
  std::string name;
  int in, out;  // 32-bit words of one block
  // in [blocks,in] and out [blocks,out] are host memory. Throws Error.
  void (*run)(int blocks, const uint32_t* in, uint32_t* out);
};
// What one multiprocessor of an sm_90a takes for something, in clocks, and where there are products
// the clocks that its tensor cores need by the data sheet, else 0. On the host model clocks are 0.
struct Rate {
  std::string name;
  double clocks, best;
  double bytes = 0;  // that are copied
};
namespace gpu {
const std::vector<PrimitiveKernel>& primitive_kernels();
std::vector<Rate> wgmma_rates(int rounds);     // primitives_wgmma.cu
std::vector<Rate> mainloop_rates(int rounds);  // primitives_mainloop.cu; 8 rounds at least
}  // namespace gpu
namespace simt {
const std::vector<PrimitiveKernel>& primitive_kernels();
std::vector<Rate> wgmma_rates(int rounds);
std::vector<Rate> mainloop_rates(int rounds);
}  // namespace simt

using Random = std::mt19937;

// What a primitive's kernel computes, said without it.
struct PrimitiveDefinition {
  std::string name;
  int capability;  // that it needs, 10 * major + minor
  int in, out;     // 32-bit words of one block
  // Inputs of one block; `round` 0, 1, ... varies their nature.
  std::function<void(Random&, int round, uint32_t* in)> draw;
  // Outputs of one block. Where error[i] >= 0, out[i] is a float that may be off by as much;
  // elsewhere it is bits.
  std::function<void(const uint32_t* in, uint32_t* out, double* error)> expected;
  int last = 1000;  // the last capability that has it
};
std::vector<PrimitiveDefinition> primitive_definitions();
std::vector<PrimitiveDefinition> mma_definitions();  // part of them

inline constexpr int kPrimitiveBlocks = 64;

// Inputs of kPrimitiveBlocks blocks in a round, the same on every machine.
std::vector<uint32_t> draw_inputs(const PrimitiveDefinition& definition, int round);
// "" if outputs of kPrimitiveBlocks blocks agree as well as the definition demands, else the first
// that does not.
std::string compare(const PrimitiveDefinition& definition, const std::vector<uint32_t>& in,
                    const std::vector<uint32_t>& got, const std::vector<uint32_t>& expected);

}  // namespace tessera
