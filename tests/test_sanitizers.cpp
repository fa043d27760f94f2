// What AddressSanitizer and ThreadSanitizer say of the kernels in simt_faults.cpp, which is built
// once with each: of every broken one where the fault is, of its correct twin nothing.
#include <catch2/catch.hpp>

#include <cstdlib>
#include <regex>
#include <set>
#include <sstream>

#include "core/check.h"
#include "tests/run_program.h"

using namespace tessera;

namespace {

constexpr int kReported = 99;  // exit status that only a sanitizer's report gives

Finished run_fault(const std::string& sanitizer, const std::vector<std::string>& arguments) {
  // The kernel's random addresses may lie where a sanitizer wants its own memory.
  static const bool can_fix = std::system("setarch -R true >/dev/null 2>&1") == 0;
  const std::string common = concat("halt_on_error=1:symbolize=0:exitcode=", kReported);
  // The log of launches is about the suite's kernels. TSan would sleep a second before it ends.
  const std::string prefix = concat(
      can_fix ? "setarch -R " : "", "env -u TESSERA_LAUNCH_LOG ASAN_OPTIONS=", common,
      ":detect_leaks=0 UBSAN_OPTIONS=", common, " TSAN_OPTIONS=", common, ":atexit_sleep_ms=0");
  return run_program("simt_faults_" + sanitizer, arguments, prefix);
}

struct Case {
  const char* name;
  const char* error;
  const char* place;  // a regular expression
};

const Case kOutOfBounds[] = {
    {"global_read", "use-after-poison", R"(global_read_kernel, block \(1,0,0\), thread \(1,0,0\))"},
    {"global_write", "use-after-poison",
     R"(global_write_kernel, block \(0,0,0\), thread \(0,0,0\))"},
    {"global_write_beyond", "use-after-poison",
     R"(global_write_kernel, block \(0,0,0\), thread \(7,0,0\))"},
    {"pool_block", "use-after-poison", R"(global_write_kernel, block \(0,0,0\), thread \(7,0,0\))"},
    {"freed_memory", "heap-use-after-free",
     R"(global_write_kernel, block \(0,0,0\), thread \(0,0,0\))"},
    {"shared_write", "use-after-poison", R"(shared_kernel, block \(0,0,0\), thread \(60,0,0\))"},
    {"smaller_shared_write", "use-after-poison",
     R"(shared_kernel, block \(0,0,0\), thread \(60,0,0\))"},
    {"shared_read", "use-after-poison",
     R"(shared_read_kernel, block \([01],0,0\), thread \(63,0,0\))"},
    {"shared_read_before", "use-after-poison",
     R"(shared_read_kernel, block \([01],0,0\), thread \(0,0,0\))"},
    {"vector_read", "use-after-poison", R"(vector_kernel, block \(0,0,0\), thread \(7,0,0\))"},
};

// Of two threads in a race that one is named which is there when the other is noticed.
const Case kRaces[] = {
    {"missing_barrier", "data race",
     R"(block \(0,0,0\), thread \(\d+,0,0\), kernel rotate_kernel<true>)"},
    {"missing_syncwarp", "data race",
     R"(block \(0,0,0\), thread \(\d+,0,0\), kernel warp_kernel<true>)"},
    {"missing_meeting", "data race",
     R"(block \(0,0,0\), thread \(\d+,0,0\), kernel shuffle_kernel<true>)"},
    {"missing_named_barrier", "data race",
     R"(block \(0,0,0\), thread \((3|32),0,0\), kernel named_barrier_kernel)"},
    {"missing_atomic", "data race",
     R"(block \(0,0,0\), thread \(\d+,0,0\), kernel counter_kernel<true>)"},
    {"missing_global_barrier", "data race",
     R"(block \(0,0,0\), thread \(\d+,0,0\), kernel neighbour_kernel<true>)"},
    {"blocks", "data race", R"(block \([012],0,0\), thread \(0,0,0\), kernel blocks_kernel<true>)"},
    {"missing_fence", "data race",
     R"(block \([0-7],0,0\), thread \(0,0,0\), kernel ticket_kernel<true>)"},
    {"missing_arrived_fence", "data race",
     R"(block \([0-7],0,0\), thread \(\d+,0,0\), kernel arrive_kernel<true>)"},
    {"missing_cluster_sync", "data race",
     R"(block \([0-3],0,0\), thread \([0-7],0,0\), kernel cluster_kernel<true>)"},
    {"missing_event", "data race", R"(block \(0,0,0\), thread \(0,0,0\), kernel count_kernel)"},
    {"missing_edge", "data race", R"(block \(0,0,0\), thread \(0,0,0\), kernel count_kernel)"},
    // Between the host and a copy: there is no kernel.
    {"missing_wait", "data race", R"('stream \d+')"},
};

// The right twin in both builds, so that a report is of the fault and not of what is around it.
void check(const Case& one, const std::string& sanitizer, const std::string& title) {
  for (const char* built_with : {"asan", "tsan"}) {
    const Finished right = run_fault(built_with, {one.name, "right"});
    INFO(one.name << " right, " << built_with);
    CHECK(right.status == 0);
    CHECK(right.err == "");
  }
  const Finished broken = run_fault(sanitizer, {one.name, "broken"});
  INFO(one.name << " broken, " << sanitizer << ":\n" << broken.err);
  CHECK(broken.status == kReported);
  CHECK(broken.err.find(concat(title, ": ", one.error)) != std::string::npos);
  CHECK(std::regex_search(broken.err, std::regex(one.place)));
}

}  // namespace

TEST_CASE("AddressSanitizer reports kernels that go out of bounds", "[program]") {
  for (const Case& one : kOutOfBounds) check(one, "asan", "ERROR: AddressSanitizer");
}

TEST_CASE("ThreadSanitizer reports kernels with data races", "[program]") {
  for (const Case& one : kRaces) check(one, "tsan", "WARNING: ThreadSanitizer");
}

TEST_CASE("every broken kernel for the sanitizers has its test", "[program]") {
  std::set<std::string> names, tested;
  for (const Case& one : kOutOfBounds) tested.insert(one.name);
  for (const Case& one : kRaces) tested.insert(one.name);
  const Finished usage = run_fault("asan", {});
  CHECK(usage.status == 2);
  std::istringstream lines(usage.err);
  std::string line;
  std::getline(lines, line);
  CHECK(line == "usage: simt_faults <name> broken|right");
  while (std::getline(lines, line)) names.insert(line);
  CHECK(names == tested);
}
