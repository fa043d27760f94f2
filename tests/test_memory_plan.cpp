// Plans of memory: what is in use at once lies apart, and a block is hardly larger than it must be.
// The arena that serves them, and what it says of work that asks for something else.
#include "core/memory_plan.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <limits>
#include <random>

#include "core/arena.h"
#include "core/check.h"
#include "tests/temp_dir.h"

using namespace tessera;
using Catch::Contains;

namespace {

constexpr int64_t kEnd = std::numeric_limits<int64_t>::max();

// Lives as training has them: most end in the reverse of the order that they began in, some at any
// time, some never.
std::vector<Life> random_lives(uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<Life> lives(1 + random() % 60);
  const auto n = int64_t(lives.size());
  for (int64_t i = 0; i < n; ++i) {
    const int64_t length = 1 + int64_t(random()) % n;
    const int64_t death = random() % 2 ? 2 * n - i : i + length;
    lives[size_t(i)] = {random() % 5000, random() % 20 ? i : 0, random() % 20 ? death : kEnd};
  }
  return lives;
}

size_t in_use_at(const std::vector<Life>& lives, int64_t time) {
  size_t sum = 0;
  for (const Life& life : lives)
    if (life.birth <= time && time < life.death) sum += life.bytes;
  return sum;
}

// What the arena's requests say of themselves when they are made as the lives say, by size.
std::string error_of(Arena& arena, const std::vector<size_t>& sizes) {
  return message_of<Error>([&] {
    for (const size_t bytes : sizes) arena.allocate(bytes);
    arena.check_finished();
  });
}

}  // namespace

TEST_CASE("small plans are the best ones", "[plan]") {
  const auto bytes = [](const std::vector<Life>& lives) { return plan_memory(lives).bytes; };
  CHECK(bytes({}) == 0);
  CHECK(bytes({{100, 0, 1}}) == 256);
  CHECK(bytes({{0, 0, 2}, {0, 1, 3}}) == 512);      // an address of its own
  CHECK(bytes({{100, 0, 1}, {300, 1, 2}}) == 512);  // one after the other
  CHECK(bytes({{100, 0, 2}, {300, 1, 3}}) == 768);  // both at once
  CHECK(plan_memory(std::vector<Life>{{256, 0, 2}, {256, 0, 1}, {256, 1, 3}}).offsets ==
        std::vector<size_t>{0, 256, 256});
  // The third does not fit where the first was; the largest first leaves no hole.
  CHECK(bytes({{256, 0, 2}, {256, 1, 4}, {512, 2, 4}}) == 768);
  // Two branches side by side, whose lives cover both.
  CHECK(bytes({{256, 0, 4}, {256, 1, 3}, {256, 1, 3}, {256, 4, 5}}) == 768);
}

TEST_CASE("what is in use at once lies apart", "[plan]") {
  for (uint32_t seed = 0; seed < 300; ++seed) {
    const std::vector<Life> lives = random_lives(seed);
    const MemoryPlan plan = plan_memory(lives);
    INFO("seed " << seed);
    REQUIRE(plan.offsets.size() == lives.size());
    size_t sum = 0, overlaps = 0;
    for (size_t i = 0; i < lives.size(); ++i) {
      const size_t end = plan.offsets[i] + lives[i].bytes;
      CHECK(plan.offsets[i] % 256 == 0);
      CHECK(end <= plan.bytes);
      sum += (std::max<size_t>(lives[i].bytes, 1) + 255) / 256 * 256;
      for (size_t j = 0; j < i; ++j)
        overlaps += lives[i].birth < lives[j].death && lives[j].birth < lives[i].death &&
                    plan.offsets[i] < plan.offsets[j] + lives[j].bytes && plan.offsets[j] < end;
    }
    CHECK(overlaps == 0);
    CHECK(plan.bytes <= sum);
    CHECK(plan.bytes >= live_peak(lives));
    CHECK(plan_memory(lives).offsets == plan.offsets);
    size_t peak = 0;
    for (const Life& life : lives) peak = std::max(peak, in_use_at(lives, life.birth));
    CHECK(live_peak(lives) == peak);
  }
}

TEST_CASE("an arena serves the requests that were noted, from one block", "[plan][arena]") {
  const auto pool = std::make_shared<Pool>();
  std::shared_ptr<Buffer> result;
  // Two temporary blocks that are never in use at once, and a result.
  const auto work = [&](MemorySource& memory) {
    std::vector<std::byte*> at;
    for (int i = 0; i < 2; ++i) at.push_back(memory.allocate(1000)->data());
    result = memory.allocate(100);
    return at;
  };
  RequestLog log(pool, 0);
  work(log);
  const std::vector<Life> lives = log.lives();
  CHECK(live_peak(lives) == 1100);  // the result has its memory all the time
  result.reset();
  pool->trim();
  CHECK(pool->bytes_in_use() == 0);
  {
    Arena arena(pool, lives);
    CHECK(arena.bytes() == 1024 + 256);
    CHECK(pool->bytes_in_use() == arena.bytes());
    const std::vector<std::byte*> at = work(arena);
    arena.check_finished();
    CHECK(at[0] == at[1]);
    CHECK(result->bytes() == 100);
    std::fill_n(at[0], 1000, std::byte{1});
    result->data()[99] = std::byte{2};
    CHECK(at[0][999] == std::byte{1});
  }
  CHECK(pool->bytes_in_use() == 1024 + 256);  // the result is in it
  CHECK(result->data()[99] == std::byte{2});
  result.reset();
  CHECK(pool->bytes_in_use() == 0);
}

TEST_CASE("an arena refuses requests that differ from those noted", "[plan][arena][errors]") {
  const auto pool = std::make_shared<Pool>();
  RequestLog log(pool, 0);
  for (const size_t bytes : {1000, 2000, 1000}) log.allocate(bytes);
  const auto with_arena = [&](auto f) {
    Arena arena(pool, log.lives());
    return f(arena);
  };
  const auto error = [&](const std::vector<size_t>& sizes) {
    return with_arena([&](Arena& arena) { return error_of(arena, sizes); });
  };
  CHECK(error({1000, 2000, 1000}) == "");
  CHECK_THAT(error({1000, 2001}), Contains("recorded work asks for 2001 bytes in request 2, the "
                                           "first time for 2000"));
  CHECK_THAT(error({1000, 2000, 1000, 5}), Contains("asks for 5 bytes more than the first time"));
  CHECK_THAT(error({1000, 2000}), Contains("makes 2 requests for memory, 3 the first time"));
  CHECK_THAT(with_arena([](Arena& arena) {
               const auto kept = arena.allocate(1000);
               return error_of(arena, {2000});
             }),
             Contains("recorded work still uses request 1 at request 2"));
  CHECK_THAT(with_arena([](Arena& arena) {
               arena.allocate(1000);
               arena.allocate(2000);
               const auto kept = arena.allocate(1000);
               return error_of(arena, {});
             }),
             Contains("recorded work keeps request 3"));
  CHECK(pool->bytes_in_use() == 0);
}

TEST_CASE("lives that touch, and the best of several plans", "[memory]") {
  const auto bytes = [](const std::vector<Life>& lives) { return plan_memory(lives).bytes; };
  CHECK(bytes({{512, 1, 2}, {512, 1, 3}, {768, 3, 5}, {512, 1, 4}}) == 1536);
  CHECK(bytes({{768, 2, 3}, {512, 3, 5}, {768, 0, 3}, {512, 3, 5}}) == 1536);
}
