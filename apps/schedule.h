// Which step is where: steps are counted from 1, epochs and batches from 0. The last batch of an
// epoch may be short.
#pragma once

#include <algorithm>

#include "core/shape.h"

namespace tessera {

struct Schedule {
  int64_t images;  // in an epoch, at least 1
  int64_t batch;   // at least 1
  int64_t total;   // steps of the run

  int64_t steps_per_epoch() const { return ceil_div(images, batch); }
  int64_t epochs() const { return epoch_of(total) + 1; }
  int64_t epoch_of(int64_t step) const { return (step - 1) / steps_per_epoch(); }
  // Of the epoch's images in shuffled order, the first that the step takes, and how many.
  int64_t first_of(int64_t step) const { return (step - 1) % steps_per_epoch() * batch; }
  int64_t size_of(int64_t step) const { return std::min(batch, images - first_of(step)); }
  // Steps of the epoch that are done after `step`: 1 .. steps_per_epoch().
  int64_t done_in_epoch(int64_t step) const { return (step - 1) % steps_per_epoch() + 1; }
  bool ends_epoch(int64_t step) const { return done_in_epoch(step) == steps_per_epoch(); }
};

}  // namespace tessera
