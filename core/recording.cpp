#include "core/recording.h"

#include "core/branch.h"

namespace tessera {

void Recording::run(const std::function<void()>& work) {
  Runtime& runtime = stream_.device().runtime();
  if (!runtime.can_record()) return work();
  join(stream_);  // work beside it, which failed perhaps, is no part of this
  if (!lives_) {
    RequestLog log(stream_.device().pool(), stream_.order());
    const Stream::MemoryFrom scope(stream_, &log);
    work();
    join(stream_);
    lives_ = log.lives();
    return;
  }
  if (!recorded_) record(work);
  runtime.replay(stream_.native(), recorded_.get());
}

void Recording::record(const std::function<void()>& work) {
  Runtime& runtime = stream_.device().runtime();
  stream_.device().pool()->trim();  // the block takes the place of what the first time left there
  arena_.emplace(stream_.device().pool(), *lives_);
  const Stream::MemoryFrom scope(stream_, &*arena_);
  runtime.begin_recording(stream_.native());
  try {
    work();
    join(stream_);
    arena_->check_finished();
  } catch (...) {
    runtime.end_recording(stream_.native(), /*drop=*/true);
    throw;
  }
  recorded_ = runtime.end_recording(stream_.native(), /*drop=*/false);
}

}  // namespace tessera
