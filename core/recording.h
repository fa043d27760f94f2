// Work that is issued again and again, with the same memory: done once as it is, recorded the
// second time, and from then on issued as one (a CUDA graph). Its temporary tensors lie in one
// block, planned from what it asked for the first time. What changes from time to time has to be in
// device memory.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "core/arena.h"
#include "core/device.h"

namespace tessera {

class Recording {
 public:
  // The stream must outlive it.
  explicit Recording(Stream& stream) : stream_(stream) {}
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  // Issues the work. `work` must ask for the same memory and issue the same launches every time
  // (other memory: Error); it may not wait, and what tensors hold that it makes and that outlive it
  // is overwritten when it is issued again. Where devices cannot record, calls work() every time.
  void run(const std::function<void()>& work);

 private:
  void record(const std::function<void()>& work);

  Stream& stream_;
  // What the work asked for the first time, which also loaded libraries. Then it gets a block of
  // its own: what is in use when the work is issued is never in the memory that it works in.
  std::optional<std::vector<Life>> lives_;
  std::optional<Arena> arena_;
  std::shared_ptr<void> recorded_;
};

}  // namespace tessera
