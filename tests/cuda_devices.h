// Runs a check on every device that has CUDA kernels, and what GPUs the host model can be.
#pragma once

#include <cstdlib>

#include "core/simt/options.h"
#include "tests/op_runner.h"

namespace tessera {

// The host model, and a GPU when there is one. TESSERA_GPU_ONLY leaves the host model out: what it
// takes minutes for, a GPU does in seconds.
inline std::vector<DeviceType> cuda_device_types() {
  const bool alone = std::getenv("TESSERA_GPU_ONLY") != nullptr;
  std::vector<DeviceType> types;
  if (!alone) types.push_back(DeviceType::simt);
  if (alone || has_gpu()) types.push_back(DeviceType::cuda);
  return types;
}

// A GPU of this compute capability, whose memory is a trap until it is written, and whose threads
// run in random order unless another is given. multiprocessors: 0, those of the profile.
inline simt::Options host_model(int capability, simt::Order order = simt::Order::Random,
                                uint64_t seed = 1, int multiprocessors = 0) {
  simt::Options options;
  options.profile = simt::profile_of(capability);
  if (multiprocessors) options.profile.multiprocessors = multiprocessors;
  options.order = order;
  options.seed = seed;
  options.trap_uninitialised = true;
  return options;
}

// Calls check(stream) on the host model, in several orders of execution and with every landing of
// asynchronous operations. Memory that nothing has written is a trap.
template <class Check>
void on_host_model(Check check) {
  const simt::ScopedOptions restore(simt::options());
  simt::options().trap_uninitialised = true;
  using enum simt::Order;
  for (const auto& [order, landing] : {std::pair(Ascending, simt::Landing::Earliest),
                                       {Descending, simt::Landing::Latest},
                                       {Random, simt::Landing::Random}}) {
    simt::options().order = order;
    simt::options().landing = landing;
    ++simt::options().seed;
    Stream stream(poisoned(DeviceType::simt));
    check(stream);
  }
}

// Calls check(stream) on each of cuda_device_types().
template <class Check>
void on_cuda_devices(Check check) {
  for (const DeviceType type : cuda_device_types()) {
    if (type == DeviceType::simt) {
      on_host_model(check);
    } else {
      Stream stream(poisoned(type));
      check(stream);
    }
  }
}

// The same, and the CPU first.
template <class Check>
void on_all_devices(Check check) {
  Stream cpu(poisoned_cpu());
  check(cpu);
  on_cuda_devices(check);
}

}  // namespace tessera
