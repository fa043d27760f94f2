// The memory of work that asks for the same every time (core/recording.h): its requests are noted
// when it is done once, and from then on served from one block, as planned (core/memory_plan.h).
#pragma once

#include <set>

#include "core/memory_plan.h"
#include "core/pool.h"

namespace tessera {

// Passes requests on to the pool and notes them with their lives.
class RequestLog : public MemorySource {
 public:
  RequestLog(std::shared_ptr<Pool> pool, Order order) : pool_(std::move(pool)), order_(order) {}
  std::shared_ptr<Buffer> allocate(size_t bytes) override;
  // Those so far. What is still in use lives from the first to the last: a result that outlives the
  // work keeps its memory to itself.
  std::vector<Life> lives() const;

 private:
  struct Notes {
    std::vector<Life> lives;
    int64_t now = 0;  // counts what comes and goes
  };
  std::shared_ptr<Pool> pool_;
  Order order_;
  std::shared_ptr<Notes> notes_ = std::make_shared<Notes>();
};

// The same requests again, in the same order. Throws Error where one differs: in bytes, or because
// its memory is not free yet.
class Arena : public MemorySource {
 public:
  Arena(const std::shared_ptr<Pool>& pool, const std::vector<Life>& lives);
  std::shared_ptr<Buffer> allocate(size_t bytes) override;
  // Throws unless all requests came, and all memory was given back that was the first time.
  void check_finished() const;
  size_t bytes() const { return plan_.bytes; }

 private:
  std::vector<Life> lives_;
  MemoryPlan plan_;
  // Outlive the arena as long as a result is in use. In a build with AddressSanitizer what belongs
  // to no request is poisoned: one request's end may be another's memory. Overruns are found the
  // first time, when every request has a block of its own.
  std::shared_ptr<Buffer> block_;
  std::shared_ptr<std::set<size_t>> in_use_ = std::make_shared<std::set<size_t>>();
  size_t next_ = 0;  // request
};

}  // namespace tessera
