#include "core/branch.h"

#include <vector>

#include "core/environment.h"

namespace tessera {
namespace {

class Branch : public MemorySource {
 public:
  explicit Branch(Stream& stream) : stream_(stream), second_(stream.device_ptr()) {}

  void run(std::function<void(Stream&)> work) {
    join();
    work_ = std::move(work);
    second_.math = stream_.math;
    runtime().wait_for(second_.native(), stream_.native());
    const Stream::MemoryFrom scope(second_, this);
    work_(second_);
    tessera::join(second_);
  }
  void join() {
    if (!work_) return;
    runtime().wait_for(stream_.native(), second_.native());
    work_ = nullptr;
    memory_.clear();
  }
  // Memory of the stream, which may have it back when it has waited; until then what the work has
  // given back serves it again.
  std::shared_ptr<Buffer> allocate(size_t bytes) override {
    for (const auto& [asked, buffer] : memory_)
      if (buffer.use_count() == 1 && asked >= bytes) return buffer;
    return memory_.emplace_back(bytes, stream_.allocate(bytes)).second;
  }

 private:
  Runtime& runtime() { return stream_.device().runtime(); }

  Stream& stream_;
  std::function<void(Stream&)> work_;
  // With the bytes that were asked for: buffers of a pool have more, those of a recording do not.
  std::vector<std::pair<size_t, std::shared_ptr<Buffer>>> memory_;
  Stream second_;  // goes first, and waits for its work
};

}  // namespace

bool has_branches(const Stream& stream) {
  static const bool wanted = is_wanted("TESSERA_BRANCHES");
  return wanted && stream.native();
}

void beside(Stream& stream, std::function<void(Stream&)> work) {
  has_branches(stream) ? stream.state<Branch>().run(std::move(work)) : work(stream);
}

void join(Stream& stream) {
  if (Branch* const branch = stream.find_state<Branch>()) branch->join();
}

}  // namespace tessera
