#include "core/simt/order_check.h"

#include <cstring>

#include "core/simt/runner.h"
#include "core/simt/stream.h"

namespace tessera::simt {
namespace {

// Contents of all device memory, and of pinned memory, which copies write.
using Snapshot = std::map<uintptr_t, std::vector<unsigned char>>;

Snapshot take_snapshot() {
  Machine& machine = Machine::get();
  std::lock_guard lock(machine.mutex);
  Snapshot snapshot;
  for (const auto& [start, block] : machine.memory) {
    const auto* first = reinterpret_cast<const unsigned char*>(start);
    if (!block.reserved) snapshot[start].assign(first, first + block.bytes);
  }
  return snapshot;
}

void restore(const Snapshot& snapshot) {
  for (const auto& [start, bytes] : snapshot)
    std::memcpy(reinterpret_cast<void*>(start), bytes.data(), bytes.size());
}

void wait() {
  if (cudaDeviceSynchronize() != cudaSuccess) throw Error("check_order: a stream is capturing");
}

struct Variant {
  Order order;
  Landing landing;
  uint64_t seed;
  std::string name() const {
    if (order == Order::Random) return concat("random order ", seed);
    return order == Order::Ascending ? "ascending order" : "descending order";
  }
};

Snapshot run(const Variant& variant, const Snapshot& before, const std::function<void()>& work) {
  const ScopedOptions scope(options());
  options().order = variant.order;
  options().landing = variant.landing;
  options().seed = variant.seed;
  options().workers = 1;
  restore(before);
  work();
  wait();
  return take_snapshot();
}

// Who writes the byte last in a run that starts from `before`; "" when its value never changes.
std::string writer_in(const unsigned char* address, const Variant& variant, const Snapshot& before,
                      const std::function<void()>& work) {
  struct Scope {
    explicit Scope(Watch& mine) { watch = &mine; }
    ~Scope() { watch = nullptr; }
  };
  restore(before);
  Watch mine{address, *address, ""};
  const Scope scope(mine);
  run(variant, before, work);
  if (*address != mine.value) mine.writer = "a copy or memset";  // after the last kernel
  return mine.writer;
}

// "0x3f in ascending order (written by kernel k, block (0,0,0), thread (1,0,0), before its end)"
std::string explain(uintptr_t start, size_t at, const Variant& variant, const Snapshot& before,
                    const std::function<void()>& work) {
  const auto* address = reinterpret_cast<const unsigned char*>(start) + at;
  std::string writer = writer_in(address, variant, before, work);
  const int value = *address;
  if (writer.empty()) {  // it wrote what was there: something else will be
    Snapshot changed = before;
    changed[start][at] ^= 0xFF;
    writer = writer_in(address, variant, changed, work);
  }
  return concat("0x", std::hex, value, " in ", variant.name(), " (written by ",
                writer.empty() ? "nobody" : writer, ")");
}

}  // namespace

void check_order(const std::function<void()>& work, int random_orders) {
  wait();
  const Snapshot before = take_snapshot();
  const Variant first{Order::Ascending, Landing::Earliest, options().seed};
  std::vector<Variant> others{{Order::Descending, Landing::Latest, options().seed}};
  for (int i = 1; i <= random_orders; ++i)
    others.push_back({Order::Random, Landing::Random, options().seed + uint64_t(i)});
  const Snapshot expected = run(first, before, work);
  for (const Variant& other : others) {
    const Snapshot found = run(other, before, work);
    for (const auto& [start, bytes] : before) {
      const auto a = expected.find(start), b = found.find(start);
      if (a == expected.end() || b == found.end() || a->second == b->second) continue;
      const size_t at =
          size_t(std::mismatch(a->second.begin(), a->second.end(), b->second.begin()).first -
                 a->second.begin());
      throw Fault(concat("order dependence: byte ", at, " of an allocation of ", bytes.size(),
                         " bytes is ", explain(start, at, first, before, work), " and ",
                         explain(start, at, other, before, work)));
    }
  }
  restore(expected);
}

}  // namespace tessera::simt
