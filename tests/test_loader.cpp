// Batches: every image once an epoch, the same order for the same seed, errors that arrive.
#include "apps/loader.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <numeric>

#include "core/check.h"
#include "tests/temp_dir.h"

using namespace tessera;

namespace {

constexpr size_t kBytes = 3;  // of an image

void write_number(int64_t i, uint8_t* out) {
  for (size_t byte = 0; byte < kBytes; ++byte) out[byte] = uint8_t(i + int64_t(byte));
}

std::vector<Batch> batches(const Schedule& schedule, uint64_t seed, int64_t first = 1) {
  Loader loader(schedule, seed, kBytes, write_number, first);
  std::vector<Batch> result;
  for (int64_t step = first; step <= schedule.total; ++step) {
    Batch batch;
    loader.next(batch);
    result.push_back(batch);
  }
  return result;
}

bool same(const Batch& a, const Batch& b) {
  return a.epoch == b.epoch && a.samples == b.samples && a.images == b.images;
}

}  // namespace

TEST_CASE("a schedule knows where its steps are", "[loader]") {
  const Schedule schedule{10, 4, 7};
  CHECK(schedule.steps_per_epoch() == 3);
  CHECK(schedule.epochs() == 3);
  CHECK(schedule.epoch_of(3) == 0);
  CHECK(schedule.epoch_of(4) == 1);
  CHECK(schedule.size_of(3) == 2);
  CHECK(schedule.size_of(4) == 4);
  CHECK(schedule.first_of(6) == 8);
  CHECK(schedule.done_in_epoch(5) == 2);
  CHECK(schedule.ends_epoch(3));
  CHECK_FALSE(schedule.ends_epoch(7));
}

TEST_CASE("every image comes once an epoch, the last short batch too", "[loader]") {
  const Schedule schedule{10, 4, 9};
  const auto all = batches(schedule, 1);
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<int64_t> seen;
    for (int64_t i = 0; i < 3; ++i) {
      const Batch& batch = all[size_t(epoch * 3 + i)];
      CHECK(batch.epoch == epoch);
      CHECK(batch.samples.size() == (i == 2 ? 2 : 4));
      CHECK(batch.images.size() == batch.samples.size() * kBytes);
      seen.insert(seen.end(), batch.samples.begin(), batch.samples.end());
    }
    std::ranges::sort(seen);
    std::vector<int64_t> expected(10);
    std::iota(expected.begin(), expected.end(), 0);
    CHECK(seen == expected);
  }
}

TEST_CASE("a batch holds the images of its samples", "[loader]") {
  for (const Batch& batch : batches({10, 4, 6}, 2))
    for (size_t i = 0; i < batch.samples.size(); ++i) {
      uint8_t expected[kBytes];
      write_number(batch.samples[i], expected);
      CHECK(std::equal(expected, expected + kBytes, batch.images.begin() + i * kBytes));
    }
}

TEST_CASE("the order follows from the seed and the epoch", "[loader]") {
  CHECK(shuffled(100, 1, 0) == shuffled(100, 1, 0));
  CHECK(shuffled(100, 1, 0) != shuffled(100, 1, 1));
  CHECK(shuffled(100, 1, 0) != shuffled(100, 2, 0));
  CHECK(shuffled(1, 1, 0) == std::vector<uint32_t>{0});
  CHECK(shuffled(0, 1, 0).empty());
}

TEST_CASE("each image is equally likely at each place of the order", "[loader]") {
  constexpr int kImages = 7, kShuffles = 7000;
  std::vector<int> counts(kImages * kImages);
  for (uint32_t epoch = 0; epoch < kShuffles; ++epoch) {
    const auto order = shuffled(kImages, 3, epoch);
    for (int place = 0; place < kImages; ++place) ++counts[place * kImages + int(order[place])];
  }
  // Expected 1000 each, with a standard deviation of 29.
  CHECK(*std::ranges::min_element(counts) > 1000 - 5 * 29);
  CHECK(*std::ranges::max_element(counts) < 1000 + 5 * 29);
}

TEST_CASE("a loader can start at any step", "[loader]") {
  const Schedule schedule{10, 4, 9};
  const auto all = batches(schedule, 4);
  for (int64_t first = 1; first <= 9; ++first) {
    const auto rest = batches(schedule, 4, first);
    REQUIRE(rest.size() == size_t(10 - first));
    for (size_t i = 0; i < rest.size(); ++i) CHECK(same(rest[i], all[size_t(first) - 1 + i]));
  }
}

TEST_CASE("what reading throws reaches the consumer, after the batches before it", "[loader]") {
  const auto read = [](int64_t i, uint8_t* out) {
    if (i == 5) throw InputError("image 5 is broken");
    write_number(i, out);
  };
  const auto order = shuffled(10, 1, 0);
  const auto bad_step = (std::ranges::find(order, 5u) - order.begin()) / 4;
  Loader loader({10, 4, 3}, 1, kBytes, read, 1);
  Batch batch;
  for (int64_t step = 0; step < bad_step; ++step) loader.next(batch);
  CHECK(message_of<InputError>([&] { loader.next(batch); }) == "image 5 is broken");
  CHECK(message_of<InputError>([&] { loader.next(batch); }) == "image 5 is broken");
}

TEST_CASE("a loader ends though nobody takes its batches", "[loader]") {
  Loader loader({10, 4, 1000}, 1, kBytes, write_number, 1);
}

TEST_CASE("there is no batch after the last step", "[loader]") {
  Loader loader({10, 4, 1}, 1, kBytes, write_number, 1);
  Batch batch;
  loader.next(batch);
  CHECK_THROWS_AS(loader.next(batch), Error);
}

TEST_CASE("an epoch is so many batches, and its order a known one", "[loader]") {
  CHECK(Schedule{21, 4, 11}.epochs() == 2);
  CHECK(shuffled(8, 1, 2) == std::vector<uint32_t>{0, 3, 2, 4, 6, 1, 7, 5});
}
