// `bench`, run as a user would: every figure that it reports comes from a call that was made.
#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>

#include "tests/op_cases.h"
#include "tests/paths.h"
#include "tests/run_program.h"

using namespace tessera;

TEST_CASE("bench times a kernel on the host model in every direction and precision", "[bench]") {
  const Finished run =
      run_program("bench", {"--device", "simt", "--seconds", "0", "--benchmark_format=json",
                            "--benchmark_filter=^(activation/.*/gelu_.2,5,7,3.|linear/.*/.3,7.|"
                            "conv_transpose2d/.*/.1,1,1,1.)"});
  INFO(run.err);
  REQUIRE(run.status == 0);
  const auto report = nlohmann::json::parse(run.out);
  CHECK(report["context"]["device"].get<std::string>().find("host model") == 0);
  std::vector<std::string> names;
  for (const auto& benchmark : report["benchmarks"]) {
    const std::string name = benchmark["name"];
    INFO(name);
    names.push_back(name.substr(0, name.rfind("/iterations")));
    CHECK(!benchmark.contains("error_occurred"));
    CHECK(benchmark["real_time"].get<double>() > 0);
    CHECK(benchmark["GFLOP/s"].get<double>() > 0);
    CHECK(benchmark["GB/s"].get<double>() > 0);
    for (const char* card : {"H200", "H100", "A100", "RTX4090"})
      CHECK(benchmark[concat(card, " predicted us")].get<double>() > 0);
    CHECK(benchmark["label"].get<std::string>().find("RTX4090: ") != std::string::npos);
  }
  std::vector<std::string> expected;
  for (const char* direction : {"forward", "backward"})
    for (const char* mode : {"f32", "bf16"})
      expected.push_back(concat("activation/", direction, '/', mode, "/gelu_[2,5,7,3]"));
  for (const char* direction : {"forward", "dgrad", "wgrad"})
    for (const char* mode : {"f32", "tf32", "bf16"}) {
      expected.push_back(concat("linear/", direction, '/', mode, "/[3,7]_->_5"));
      expected.push_back(concat("conv_transpose2d/", direction, '/', mode, "/[1,1,1,1]_->_1"));
    }
  CHECK_THAT(names, Catch::UnorderedEquals(expected));
}

TEST_CASE("bench times a training step on the host model", "[bench]") {
  const Finished run =
      run_program("bench", {"--device", "simt", "--seconds", "0", "--benchmark_format=json",
                            "--benchmark_filter=^training_step/f32"});
  INFO(run.err);
  REQUIRE(run.status == 0);
  const auto report = nlohmann::json::parse(run.out);
  REQUIRE(report["benchmarks"].size() == 1);
  CHECK(report["benchmarks"][0]["images/s"].get<double>() > 0);
  CHECK(report["benchmarks"][0]["peak MB"].get<double>() > 0);
}

TEST_CASE("bench times the kernels that no tape records on the host model", "[bench]") {
  const Finished run =
      run_program("bench", {"--device", "simt", "--seconds", "0", "--benchmark_format=json",
                            "--benchmark_filter=^kernel/"});
  INFO(run.err);
  REQUIRE(run.status == 0);
  std::set<std::string> names;
  const auto report = nlohmann::json::parse(run.out);
  for (const auto& benchmark : report["benchmarks"]) {
    const std::string name = benchmark["name"];
    CHECK(!benchmark.contains("error_occurred"));
    CHECK(benchmark["GB/s"].get<double>() > 0);
    const size_t begin = name.find('/') + 1;
    names.insert(name.substr(begin, name.find('/', begin) - begin));
  }
  CHECK(names == std::set<std::string>{"add_noise", "adam_step", "batch_norm_moments",
                                       "batch_norm_update", "copy_rounded", "draw_timesteps",
                                       "fill", "find_non_finite", "grad_norm", "make_batch",
                                       "norm_act_conv2d_bwd", "normalize_images",
                                       "timestep_embedding_fwd", "turn_filters", "upcat_phases"});
}

TEST_CASE("every op is timed for lesson and quick and over a sweep, in 8 GB at most", "[bench]") {
  const CaseTable table = all_cases();
  std::map<std::string, std::set<std::string>> names;
  for (const OpCase& c : table.benchmarks) {
    INFO(c.op << ' ' << c.name);
    CHECK(names[c.op].insert(c.name).second);
    CHECK(c.forward.bytes + c.backward.bytes < 8e9);
  }
  const auto has = [&](const std::string& op, const std::string& word) {
    return std::ranges::any_of(names[op], [&](const std::string& name) {
      return (' ' + name).find(' ' + word + ' ') != std::string::npos;
    });
  };
  std::set<std::string> ops;
  for (const OpCase& c : table.tests) ops.insert(c.op);
  CHECK(ops.size() >= 13);
  for (const std::string& op : ops) {
    INFO(op);
    for (const char* shapes : {"lesson", "quick", "sweep"}) CHECK(has(op, shapes));
  }
}

namespace {

// The functions of the catalogue that compute something, as kernels.h declares them.
std::set<std::string> catalogue() {
  const std::string header =
      read_text(std::filesystem::path(test_dir()) / ".." / "kernels" / "kernels.h");
  const std::regex declaration("\\n[a-z0-9_]+ ([a-z0-9_]+)\\(Stream& stream");
  std::set<std::string> names;
  for (std::sregex_iterator at(header.begin(), header.end(), declaration), end; at != end; ++at)
    names.insert((*at)[1]);
  names.erase("norm_by_images");
  return names;
}

std::vector<std::string> listed_benchmarks(const std::string& device) {
  const Finished run = run_program("bench", {"--device", device, "--benchmark_list_tests"});
  REQUIRE(run.status == 0);
  std::istringstream lines(run.out);
  std::vector<std::string> names;
  for (std::string name; std::getline(lines, name);) names.push_back(name);
  return names;
}

// Whether one begins with these words, at a shape of the model, batch 32.
bool has_benchmark(const std::vector<std::string>& listed, const std::string& begin,
                   const std::string& model) {
  return std::ranges::any_of(listed, [&](const std::string& name) {
    return name.starts_with(begin) && name.find(model + '_', begin.size()) != std::string::npos &&
           name.find("batch_128") == std::string::npos;
  });
}

// What the names of a function's benchmarks begin with: it has a case of its own, or an op of the
// tape calls it, one way or back.
std::string benchmark_of(const std::string& function, const std::vector<std::string>& listed) {
  const std::string own = concat("kernel/", function, '/');
  if (has_benchmark(listed, own, "lesson")) return own;
  for (const auto& [ending, direction] :
       {std::pair{"_fwd", "forward"}, std::pair{"_bwd_data", "dgrad"},
        std::pair{"_bwd_weight", "wgrad"}, std::pair{"_bwd_t", "backward"},
        std::pair{"_bwd", "backward"}})
    if (function.ends_with(ending))
      return concat(function.substr(0, function.size() - std::strlen(ending)), '/', direction, '/');
  return function + "/forward/";
}

}  // namespace

TEST_CASE("bench times every function of the catalogue at the shapes of lesson and quick",
          "[bench]") {
  const std::set<std::string> functions = catalogue();
  CHECK(functions.size() >= 40);
  // They take f32, or what has no precision.
  const std::set<std::string> only_f32{
      "add_noise",      "batch_norm_moments", "batch_norm_update", "copy_rounded",
      "draw_timesteps", "grad_norm",          "normalize_images",  "upcat_phases"};
  for (const char* device : {"cpu", "cuda"}) {
    const std::vector<std::string> listed = listed_benchmarks(device);
    for (const std::string mode : {"f32", "bf16"}) {
      for (const std::string& function : functions)
        for (const char* model : {"lesson", "quick"})
          if (mode == "f32" || !only_f32.contains(function)) {
            const std::string begin = benchmark_of(function, listed) + mode + '/';
            INFO(function << ": no " << begin << " of " << model << " on " << device);
            CHECK(has_benchmark(listed, begin, model));
          }
    }
  }
}

TEST_CASE("bench computes all that it times at the shapes of quick on the CPU", "[bench]") {
  const Finished run =
      run_program("bench", {"--device", "cpu", "--seconds", "0", "--benchmark_format=json",
                            "--benchmark_filter=/([a-z-]+_)?quick_"});
  INFO(run.err);
  REQUIRE(run.status == 0);
  const auto report = nlohmann::json::parse(run.out);
  CHECK(report["benchmarks"].size() > 200);
  for (const auto& benchmark : report["benchmarks"]) {
    INFO(benchmark["name"]);
    CHECK(!benchmark.contains("error_occurred"));
    CHECK(benchmark["GB/s"].get<double>() > 0);
  }
}

TEST_CASE("bench measures what a CPU reaches at best, and says which share of it is reached",
          "[bench]") {
  const Finished run =
      run_program("bench", {"--device", "cpu", "--cases", "tests", "--seconds", "0.001",
                            "--benchmark_format=json",
                            "--benchmark_filter=linear/forward/f32/.32,128.|training_step/f32"});
  INFO(run.err);
  REQUIRE(run.status == 0);
  const auto report = nlohmann::json::parse(run.out);
  const auto context = [&](const char* name) {
    return std::stod(report["context"][name].get<std::string>());
  };
  CHECK(context("threads") >= 1);
  REQUIRE(report["benchmarks"].size() == 2);
  const auto &linear = report["benchmarks"][0], &step = report["benchmarks"][1];
  for (const auto* benchmark : {&linear, &step})
    CHECK((*benchmark)["GFLOP/s"].get<double>() ==
          Approx((*benchmark)["of matmul"].get<double>() * context("matmul f32 GFLOP/s")));
  CHECK(linear["GB/s"].get<double>() ==
        Approx(linear["of copy"].get<double>() * context("copy GB/s")));
  // 32 x 128 by 128 x 64; real_time is in ms.
  CHECK(linear["GFLOP/s"].get<double>() * linear["real_time"].get<double>() ==
        Approx(2 * 32 * 128 * 64 / 1e6));
  // 8x8, base 8, batch 2: 1,221,632 products of an image, forward and twice back.
  CHECK(step["GFLOP/s"].get<double>() * step["real_time"].get<double>() ==
        Approx(2 * 3 * 2 * 1221632 / 1e6));
}

TEST_CASE("bench lists what it would time on a GPU without one", "[bench]") {
  const Finished run = run_program("bench", {"--device", "cuda", "--benchmark_list_tests"});
  REQUIRE(run.status == 0);
  for (const char* name :
       {"conv2d/forward/bf16/lesson_64x64x64_3x3", "conv2d/dgrad/tf32/sweep_8x8",
        "conv2d/wgrad/f32/lesson_batch_128_8x8x512_3x3", "group_norm/backward/",
        "linear/dgrad/bf16/", "residual_block/forward/bf16/",
        "conv2d/forward/tf32/sweep_256x256x64_2x2_stride_2",
        "activation/backward/f32/gelu_sweep_8x8x1280", "kernel/adam_step/f32/lesson_",
        "kernel/adam_step/bf16/sweep_", "kernel/copy_rounded/f32/sweep_",
        "kernel/find_non_finite/f32/lesson_batch_128_64x64x64_",
        "kernel/find_non_finite/f32/sweep_", "kernel/norm_act_conv2d_bwd/tf32/lesson_",
        "kernel/make_batch/bf16/sweep_", "training_step/bf16/lesson/"})
    CHECK(run.out.find(name) != std::string::npos);
}

TEST_CASE("bench refuses what it does not know, or what does not go together", "[bench]") {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"--nonsense"},
        {"stray"},
        {"--device", "tpu"},
        {"--device", "simt", "--benchmark_filter=no_such_benchmark"},
        {"--plan", "stray"},
        {"--tiles", "--benchmark_filter=gelu"},
        {"--tune", "tiles.txt", "stray"},
        {"--predict", "gelu", "--nonsense"},
        {"--tiles", "--plan"},
        {"--plan", "--save", "file"},
        {"--tiles", "--against", "file"},
        {"--tune", "tiles.txt", "--save", "file"},
        {"--predict", "gelu", "--against", "file"},
        {"--benchmark_list_tests", "--save", "file"},
        {"--save"},
        {"--save", "--benchmark_filter=gelu"},
        {"--against="}}) {
    INFO(Catch::StringMaker<std::vector<std::string>>::convert(arguments));
    const Finished run = run_program("bench", arguments);
    CHECK(run.status == 2);
    CHECK(run.err.find("bench: error: ") != std::string::npos);
  }
  CHECK(run_program("bench", {"--device", "tpu"}).err.find("auto,cpu,cuda,simt") !=
        std::string::npos);
}
