// `bench --save` and `--against`, run as a user would.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/run_program.h"
#include "tests/table_rows.h"

using namespace tessera;

namespace {

// A short run with more arguments.
Finished short_bench(const std::vector<std::string>& more, const std::string& prefix = "") {
  std::vector<std::string> arguments{"--device", "simt", "--seconds", "0"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return run_program("bench", arguments, prefix);
}

}  // namespace

TEST_CASE("bench saves what it measured, and compares with it", "[bench]") {
  const TempDir dir;
  const std::string in_dir = concat("cd ", shell_word(dir.path().string()), " &&");
  const Finished first = short_bench(
      {"--save", "first.json", "--benchmark_filter=linear/.*/f32/.3,7.|fill/f32"}, in_dir);
  INFO(first.err);
  REQUIRE(first.status == 0);
  auto saved = nlohmann::json::parse(read_text(dir / "first.json"));
  CHECK(saved["device"].get<std::string>().find("host model") == 0);
  CHECK(saved["threads"].get<int>() >= 1);
  CHECK(saved["precisions"] == nlohmann::json{"f32", "tf32", "bf16"});
  CHECK(saved["seconds"].size() == 4);
  CHECK(saved["seconds"]["linear/dgrad/f32/[3,7]_->_5"].get<double>() > 0);

  // Two of them, and two others.
  const auto second = short_bench({"--save", "second.json", "--against", "first.json",
                                   "--benchmark_filter=linear/[dw]grad/f32/.[34],7."},
                                  in_dir);
  INFO(second.err);
  REQUIRE(second.status == 0);
  CHECK(second.err.find("warning: first.json") == std::string::npos);
  auto now = nlohmann::json::parse(read_text(dir / "second.json"));
  double logarithms = 0;
  for (const char* direction : {"dgrad", "wgrad"}) {
    const std::string name = concat("linear/", direction, "/f32/[3,7]_->_5");
    const auto row = row_of(second.out, name);
    REQUIRE(row.size() == 4);
    const double then_ms = 1e3 * saved["seconds"][name].get<double>(),
                 now_ms = 1e3 * now["seconds"][name].get<double>();
    CHECK(std::stod(row[1]) == Approx(then_ms).epsilon(1e-3));
    CHECK(std::stod(row[2]) == Approx(now_ms).epsilon(1e-3));
    CHECK(std::stod(row[3]) == Approx(now_ms / then_ms).margin(6e-4));
    logarithms += std::log(now_ms / then_ms);
  }
  const std::string mean = "geometric mean of 2 ratios: ";
  REQUIRE(second.out.find(mean) != std::string::npos);
  CHECK(std::stod(second.out.substr(second.out.find(mean) + mean.size())) ==
        Approx(std::exp(logarithms / 2)).margin(6e-4));
  CHECK(second.out.find("only then: 2, only now: 2\n") != std::string::npos);
  CHECK(row_of(second.out, "linear/forward").empty());

  // A report for programs stays one, and another device is no reason to stop.
  saved["device"] = "an abacus";
  write_text(dir / "other.json", saved.dump());
  const auto third = short_bench({"--against", "other.json", "--benchmark_format=json",
                                  "--benchmark_filter=fill/f32|linear/forward/bf16/.3,7."},
                                 in_dir);
  REQUIRE(third.status == 0);
  CHECK(nlohmann::json::parse(third.out)["benchmarks"].size() == 2);
  CHECK(third.err.find("bench: warning: other.json: it is of an abacus, ") != std::string::npos);
  CHECK(third.err.find("only then: 3, only now: 1\n") != std::string::npos);
}

TEST_CASE("bench says what is wrong with a file before it measures", "[bench]") {
  const TempDir dir;
  const std::string good = R"({"tessera bench": 1, "device": "d", "threads": 1,
    "precisions": ["f32"], "peaks": {"copy GB/s": 2}, "seconds": {"a": 1}})";
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    return text.replace(text.find(from), from.size(), to);
  };
  const auto expect = [&](const std::vector<std::string>& arguments, const std::string& message) {
    const Finished run = short_bench(arguments);
    INFO(message);
    CHECK(run.status == 1);
    CHECK(run.out.empty());
    CHECK(run.err == concat("bench: error: ", message, '\n'));
  };
  const std::string file = (dir / "run.json").string();
  for (const auto& [content, message] : std::initializer_list<std::pair<std::string, std::string>>{
           {R"({"context": {}, "benchmarks": []})", "not a file that bench --save wrote"},
           {"[1]", "not a file that bench --save wrote"},
           {with("bench\": 1", "bench\": 2"), "of version 2, expected 1"},
           {with("\"a\": 1", "\"a\": -1"), "-1 is not a positive number"},
           {with("\"a\": 1", "\"a\": null"), "type must be number, but is null"},
           {with("\"threads\": 1,", ""), "key 'threads' not found"}}) {
    write_text(file, content);
    expect({"--against", file}, concat(file, ": ", message));
  }
  write_text(file, good.substr(0, good.size() / 2));
  const Finished torn = short_bench({"--against", file});
  CHECK(torn.status == 1);
  CHECK(torn.err.find(concat("bench: error: ", file, ": parse error")) == 0);
  CHECK(std::ranges::count(torn.err, '\n') == 1);

  const std::string nowhere = (dir / "missing" / "file").string();
  expect({"--against", nowhere}, concat("cannot read ", nowhere, ": No such file or directory"));
  expect({"--save", nowhere}, concat("cannot write ", nowhere, ": No such file or directory"));
  expect({"--save", dir.path().string()},
         concat("cannot write ", dir.path().string(), ": it is not a regular file"));
  // What is wrong later leaves an old file as it was.
  write_text(file, good);
  CHECK(short_bench({"--save", file, "--benchmark_filter=no_such_benchmark"}).status == 2);
  CHECK(read_text(file) == good);
}
