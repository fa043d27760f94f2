// What a step needs is nearly proportional to its batch: where memory runs out, the message says
// so.
#pragma once

#include "core/check.h"

namespace tessera {

// Calls f; an OutOfMemory that leaves it names a smaller batch to try.
template <class F>
decltype(auto) with_batch_hint(size_t batch, F&& f) try {
  return f();
} catch (const OutOfMemory& error) {
  throw OutOfMemory(
      concat(error.what(), ", for a batch of ", batch,
             batch > 1 ? concat(": try --batch ", batch / 2) : ": try a smaller network"));
}

}  // namespace tessera
