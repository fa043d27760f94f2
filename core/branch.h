// A second line of work beside a stream's own: what nobody waits for yet, as filters' gradients,
// fills the gaps that the stream's kernels leave on a GPU. In recorded work (core/recording.h) the
// two are branches of one graph.
#pragma once

#include <functional>

#include "core/device.h"

namespace tessera {

// Calls work(another stream): what it issues comes behind all that `stream` has issued, and beside
// what `stream` issues next, until join() or the next call, which begins with a join(). Until then
// all memory stays that `work` holds (it captures copies of the tensors that it uses) or asks for.
// Whoever waits for `stream` (synchronize(), copies to the host) has to join it first; a Recording
// does so before and behind its work. Where a stream has no branches, work(stream).
void beside(Stream& stream, std::function<void(Stream&)> work);

// What `stream` issues from here on comes behind the work beside it, if there is any.
void join(Stream& stream);

// Not on the CPU, and not where TESSERA_BRANCHES=0 is set.
bool has_branches(const Stream& stream);

}  // namespace tessera
