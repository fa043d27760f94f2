// Launching kernels on the host model. The grid is queued on its stream and runs when somebody
// waits for it (or earlier: Options::landing), so that a missing wait is seen.
#pragma once

#include <tuple>

#include "core/simt/launch_log.h"
#include "core/simt/runtime.h"

namespace tessera::simt {

struct Launch {
  cudaStream_t stream;
  dim3 grid, block;
  size_t shared_bytes = 0;
  unsigned cluster = 0;   // so many neighbours in x live at once and may call cluster_sync()
  bool overlaps = false;  // its threads wait for the kernel before it, and set Thread::begun
};

// The grid's name, size and options are checked now, the blocks run later. Throws Error for a
// launch that CUDA would refuse.
void enqueue_grid(const Launch& launch, const char* kernel, void (*body)(const void*),
                  std::shared_ptr<void> arguments);

template <auto Kernel>
struct Launcher;

template <class... P, void (*Kernel)(P...)>
struct Launcher<Kernel> {
  static const char* name() { return __PRETTY_FUNCTION__; }
  static void run(const Launch& launch, P... p) {
    using Arguments = std::tuple<P...>;
    log_launch(reinterpret_cast<const void*>(Kernel), launch);
    enqueue_grid(
        launch, name(),
        [](const void* arguments) {
          std::apply(Kernel, *static_cast<const Arguments*>(arguments));
        },
        std::make_shared<Arguments>(p...));
  }
};

// launch<kernel>({stream, grid, block, shared_bytes}, arguments...)
template <auto Kernel, class... Arguments>
void launch(const Launch& launch, const Arguments&... arguments) {
  Launcher<Kernel>::run(launch, arguments...);
}

// Dynamic shared memory as one struct.
template <class T>
T& shared_memory(Where where = Where::current()) {
  return *static_cast<T*>(shared_bytes(sizeof(T), alignof(T), where));
}

}  // namespace tessera::simt
