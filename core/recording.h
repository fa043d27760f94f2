// Work that is issued again and again, with the same memory: done once as it is, recorded the
// second time, and from then on issued as one (a CUDA graph). What changes from time to time has to
// be in device memory.
#pragma once

#include <functional>

#include "core/device.h"

namespace tessera {

class Recording {
 public:
  // The stream must outlive it.
  explicit Recording(Stream& stream);
  ~Recording();
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  // Issues the work. `work` must ask for the same memory and issue the same launches every time; it
  // may not wait, and tensors that it makes and that outlive it belong to this recording. Where
  // devices cannot record, calls work() every time.
  void run(const std::function<void()>& work);

 private:
  Stream& stream_;
  // Temporary tensors come from an order of the pool that nobody else has: what is in use when the
  // work is issued is never in the memory that it works in.
  Order order_ = 0;
  bool warm_ = false;  // the pool holds all that the work asks for, libraries are loaded
  std::shared_ptr<void> recorded_;
};

}  // namespace tessera
