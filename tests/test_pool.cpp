// The pool: blocks come back, steady use takes nothing from the system, counters tell the truth.
#include "core/pool.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <thread>

#include "core/check.h"
#include "tests/temp_dir.h"

using namespace tessera;

TEST_CASE("blocks are aligned and at least as large as asked", "[pool]") {
  auto pool = std::make_shared<Pool>();
  for (size_t bytes : {0, 1, 63, 64, 65, 1000, 4096, 4097, 100003}) {
    const auto block = pool->allocate(bytes);
    CHECK(reinterpret_cast<uintptr_t>(block->data()) % 64 == 0);
    CHECK(block->bytes() >= std::max<size_t>(bytes, 1));
    CHECK(block->bytes() <= std::max<size_t>(64, bytes) * 9 / 8 + 64);
  }
}

TEST_CASE("a freed block serves requests of its class only", "[pool]") {
  auto pool = std::make_shared<Pool>();
  const std::byte* first = pool->allocate(4096)->data();
  CHECK(pool->misses() == 1);
  CHECK(pool->allocate(4096)->data() == first);
  CHECK(pool->allocate(4096 - 256)->data() != first);  // the class below
  CHECK(pool->allocate(4096 + 1)->data() != first);    // the class above
  CHECK(pool->misses() == 3);
}

TEST_CASE("sizes close to each other share a class", "[pool]") {
  auto pool = std::make_shared<Pool>();
  const std::byte* first = pool->allocate(4097)->data();
  CHECK(pool->allocate(4096 + 512)->data() == first);
  CHECK(pool->misses() == 1);
}

TEST_CASE("large blocks waste less than 2 MiB", "[pool]") {
  auto pool = std::make_shared<Pool>();
  const size_t mib = size_t{1} << 20;
  CHECK(pool->allocate(100 * mib)->bytes() == 100 * mib);
  CHECK(pool->allocate(100 * mib + 1)->bytes() == 102 * mib);
}

TEST_CASE("the second run of a sequence of requests takes nothing from the system", "[pool]") {
  auto pool = std::make_shared<Pool>();
  const auto step = [&] {
    std::vector<std::shared_ptr<Buffer>> live;
    for (size_t i = 0; i < 200; ++i) {
      live.push_back(pool->allocate(i * i * 17 % 9000));
      if (i % 3 == 0) live.erase(live.begin() + std::ptrdiff_t(live.size() / 2));
    }
  };
  step();
  const int64_t misses = pool->misses();
  const size_t peak = pool->peak_bytes();
  for (int i = 0; i < 3; ++i) step();
  CHECK(misses > 0);
  CHECK(pool->misses() == misses);
  CHECK(pool->peak_bytes() == peak);
}

TEST_CASE("bytes in use and their peak", "[pool]") {
  auto pool = std::make_shared<Pool>();
  CHECK(pool->bytes_in_use() == 0);
  {
    const auto a = pool->allocate(1024);
    const auto b = pool->allocate(2048);
    CHECK(pool->bytes_in_use() == 1024 + 2048);
  }
  CHECK(pool->bytes_in_use() == 0);
  const auto c = pool->allocate(512);
  CHECK(pool->bytes_in_use() == 512);
  CHECK(pool->peak_bytes() == 1024 + 2048);
}

TEST_CASE("trim gives cached blocks back and leaves the others", "[pool]") {
  auto pool = std::make_shared<Pool>();
  const auto kept = pool->allocate(256);
  kept->data()[0] = std::byte{7};
  pool->allocate(1024);
  pool->trim();
  CHECK(kept->data()[0] == std::byte{7});
  CHECK(pool->bytes_in_use() == kept->bytes());
  const int64_t misses = pool->misses();
  pool->allocate(1024);
  CHECK(pool->misses() == misses + 1);
}

TEST_CASE("a block of its own has just the bytes, and goes back to the system", "[pool]") {
  auto pool = std::make_shared<Pool>();
  pool->allocate(5000);
  for (int64_t misses : {2, 3}) {
    const auto block = pool->allocate_once(5000);
    CHECK(block->bytes() == 5000);
    CHECK(pool->bytes_in_use() == 5000);
    CHECK(pool->misses() == misses);
  }
  CHECK(pool->bytes_in_use() == 0);
  CHECK(pool->peak_bytes() == 5120);  // the size class of the first
  CHECK(message_of<Error>([&] {
          pool->allocate_once(size_t{1} << 60);
        }).find("out of memory: requested 1152921504606846976 bytes, in use 0") == 0);
}

TEST_CASE("a freed block serves its own order, until that has ended", "[pool]") {
  auto pool = std::make_shared<Pool>();
  const Order a = pool->open_order(), b = pool->open_order();
  const std::byte* first = pool->allocate(1024, a)->data();
  CHECK(pool->allocate(1024, a)->data() == first);
  const auto other = pool->allocate(1024, b);
  CHECK(other->data() != first);  // a's work may still use it
  pool->close_order(a);
  CHECK(pool->allocate(1024, b)->data() == first);
  CHECK(pool->misses() == 2);
  CHECK_THROWS_AS(pool->allocate(1024, a), Error);
}

TEST_CASE("what outlives its order goes back to the system", "[pool]") {
  auto pool = std::make_shared<Pool>();
  const Order a = pool->open_order();
  auto block = pool->allocate(1024, a);
  pool->close_order(a);
  block.reset();
  CHECK(pool->bytes_in_use() == 0);
  pool->allocate(1024);
  CHECK(pool->misses() == 2);
}

TEST_CASE("a block keeps its pool alive", "[pool]") {
  auto pool = std::make_shared<Pool>();
  auto block = pool->allocate(64);
  const std::weak_ptr<Pool> watch = pool;
  pool.reset();
  CHECK(!watch.expired());
  block.reset();
  CHECK(watch.expired());
}

TEST_CASE("a request that cannot be met says how much was asked and used", "[pool]") {
  auto pool = std::make_shared<Pool>();
  const auto held = pool->allocate(64);
  const size_t huge = size_t{1} << 60;
  const std::string message = message_of<Error>([&] { pool->allocate(huge); });
  CHECK(message.find("out of memory: requested 1152921504606846976 bytes, in use 64") == 0);
  CHECK_THROWS_AS(pool->allocate(SIZE_MAX), Error);
  CHECK(pool->bytes_in_use() == 64);
  CHECK(pool->misses() == 1);
}

TEST_CASE("threads share a pool", "[pool]") {
  auto pool = std::make_shared<Pool>();
  const auto work = [&pool](std::byte mark, int& wrong) {
    for (size_t i = 0; i < 2000; ++i) {
      const size_t bytes = 64 + i % 512;
      const auto block = pool->allocate(bytes);
      std::fill_n(block->data(), bytes, mark);
      wrong += block->data()[bytes - 1] != mark;
    }
  };
  int wrong[2] = {};
  {
    std::jthread other([&] { work(std::byte{1}, wrong[0]); });
    work(std::byte{2}, wrong[1]);
  }
  CHECK(wrong[0] + wrong[1] == 0);
  CHECK(pool->bytes_in_use() == 0);
}
