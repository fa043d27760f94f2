// Runs a check on every device that has CUDA kernels.
#pragma once

#include "core/simt/options.h"
#include "tests/op_runner.h"

namespace tessera {

// Calls check(stream) on the host model, in several orders of execution and with every landing of
// asynchronous operations, and on a GPU when there is one. Memory that nothing has written is a
// trap.
template <class Check>
void on_cuda_devices(Check check) {
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
  if (!has_gpu()) return;
  Stream stream(poisoned(DeviceType::cuda));
  check(stream);
}

// The same, and the CPU first.
template <class Check>
void on_all_devices(Check check) {
  Stream cpu(poisoned_cpu());
  check(cpu);
  on_cuda_devices(check);
}

}  // namespace tessera
