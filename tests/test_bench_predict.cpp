// What `bench` says of GPUs that are not there: what steps hold (--plan), and what launches need
// (--predict).
#include <catch2/catch.hpp>
#include <cmath>
#include <map>
#include <sstream>

#include "tests/paths.h"
#include "tests/run_program.h"
#include "tests/table_rows.h"

using namespace tessera;

TEST_CASE("bench plans the memory of training steps without a GPU", "[bench]") {
  const Finished run = run_program("bench", {"--plan"});
  INFO(run.err);
  REQUIRE(run.status == 0);
  std::map<std::string, std::vector<double>> rows;
  std::istringstream lines(run.out);
  for (std::string line, name; std::getline(lines, line);) {
    std::istringstream cells(line);
    std::getline(std::getline(cells, name, '|'), name, '|');
    for (std::string cell; std::getline(cells, cell, '|');)
      if (cell.find_first_of("0123456789") != std::string::npos) rows[name].push_back(stod(cell));
  }
  REQUIRE(rows.size() == 9);
  for (const auto& [name, mb] : rows) {
    INFO(name);
    REQUIRE(mb.size() == 4);
    CHECK(mb[0] > 0);
    CHECK(mb[2] < 1.1 * mb[1]);
    CHECK(std::abs(mb[0] + mb[2] - mb[3]) < 0.2);
  }
  const double f32 = rows.at(" lesson, f32 ")[2], bf16 = rows.at(" lesson, bf16 ")[2];
  CHECK(bf16 < 0.6 * f32);
  CHECK(rows.at(" lesson batch 128, bf16 ")[2] > 3 * bf16);
}

namespace {

constexpr const char* kInstructionsHead =
    "| kernel | arch | instructions | loop | mma | stores | loads | outside | stores outside | "
    "loads outside |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";

}  // namespace

TEST_CASE("bench predicts what launches need on cards that are not there", "[bench]") {
  const TempDir dir;
  const std::string kernel =
      "`conv::conv_halo_kernel<conv::HaloTile<16, 16, 64, 64, 32, 1, 1>, "
      "conv::HaloSource, conv::HaloImage, 2>`";
  write_text(dir / "resources.md",
             concat("| kernel | arch | registers |\n| --- | --- | ---: |\n| ", kernel,
                    " | sm_90a | 120 |\n| ", kernel, " | sm_80 | 130 |\n"));
  write_text(dir / "kernel-instructions.md",
             concat(kInstructionsHead, "| ", kernel,
                    " | sm_90a | 2500 | 600 | 96 | 0 | 0 | 0 | 0 | 0 |\n"));
  const Finished run = run_program(
      "bench", {"--predict", "^conv2d/(forward|wgrad)/bf16/lesson_64x64x64_3x3_.32,64,64,64._",
                "--resources", (dir / "resources.md").string()});
  INFO(run.err);
  INFO(run.out);
  REQUIRE(run.status == 0);
  // 2 * 32 * 64^2 * 64 * 576 flop; x and y of 2 bytes, 64 * 576 filters of 2 or, as gradients, 4.
  const auto forward = row_of(run.out, "conv2d/forward/bf16/"),
             back = row_of(run.out, "conv2d/wgr");
  REQUIRE(forward.size() == 12);
  CHECK(forward[1] + ' ' + forward[2] == "9663.7 33.63");
  CHECK(back[1] + ' ' + back[2] == "9663.7 33.70");
  CHECK(forward[3] + ' ' + forward[5] + ' ' + forward[7] == "9.8 10.0 31.0");
  CHECK(forward[9] == "58.5");
  CHECK(forward[11] == "1 to 1");
  CHECK(back[11] == "2 to 3");

  // 512 blocks of 576 shares that a warp has of wgmma m64n64k16, of 8 matrices of 128 bytes each.
  const auto launch = row_of(run.out, "1 | `conv_halo_kernel");
  REQUIRE(launch.size() == 11);
  CHECK(launch[2] + ' ' + launch[3] == "512 24");
  CHECK(launch[4] + ' ' + launch[5] == "9663.7 33.63");
  CHECK(launch[7] + ' ' + launch[8] + ' ' + launch[9] == "302.0 0 295");
  CHECK(launch[10] == "6.2/mma");
  // Halos of 306.25 pixels on average, all filters, the bias for each pair of results, and the
  // output.
  CHECK(
      std::stod(launch[6]) ==
      Approx((512 * (306.25 * 128 + 9 * 64 * 64 * 2 + 256 * 64 * 4) + 32 * 64 * 64 * 64 * 2) / 1e6)
          .epsilon(0.01));
  // Times: 294,912 * 6.25 instructions by 4 * 132 * 1.83e9; 512 blocks in four rounds of 132.
  const auto h200 = row_of(run.out, "1 | H200");
  REQUIRE(h200.size() == 13);
  CHECK(h200[2] + ' ' + h200[3] + ' ' + h200[4] == "120 2 1.94");
  CHECK(h200[5] + ' ' + h200[7] == "7.0 9.8");
  CHECK(h200[9] == "1.9");
  CHECK(std::stod(h200[10]) == Approx(std::stod(h200[8]) * 528 / 512).margin(0.1));
  CHECK(std::stod(h200[6]) == Approx(std::stod(launch[6]) / (3840 * 1.83) * 1e3).margin(0.1));
  CHECK(h200[11] == concat("**", h200[6], "**"));
  CHECK(h200[12] == "L2");
  // A card of 8.9 runs the code for 8.0.
  const auto rtx4090 = row_of(run.out, "1 | RTX4090");
  REQUIRE(rtx4090.size() == 13);
  CHECK(rtx4090[2] + ' ' + rtx4090[3] == "130 1");
  CHECK(rtx4090[9] == "-");
  CHECK(rtx4090[12] == "math");
  // Parts are summed by a second launch: 128 of them, of filters and bias, and the sums.
  const auto sums = row_of(run.out, "3 | `sum_parts_kernel<4>`");
  REQUIRE(sums.size() == 11);
  CHECK(sums[5] == "19.05");
  CHECK(run_program("bench", {"--predict", "nothing"}).status != 0);
}

TEST_CASE("bench predicts instructions by the vectors that a loop moves", "[bench]") {
  const TempDir dir;
  write_text(dir / "resources.md", "| kernel | arch | registers |\n| --- | --- | ---: |\n");
  write_text(
      dir / "kernel-instructions.md",
      concat(kInstructionsHead,
             "| `norm_act_fwd_kernel<bf16, 8, Act<(Activation)0>>` | sm_80 | 500 | 160 | 0 | "
             "1 | 2 | 300 | 0 | 6 |\n"
             "| `norm_act_sums_kernel<bf16, 8, Act<(Activation)0>>` | sm_80 | 900 | 200 | 0 "
             "| 0 | 2 | 700 | 0 | 7 |\n"));
  const Finished run = run_program(
      "bench",
      {"--predict",
       "^group_norm_act/[a-z]+/bf16/gelu_lesson_8x8x512_.32,8,8,512._in_[0-9]+_groups_._t$",
       "--resources", (dir / "resources.md").string()});
  INFO(run.err);
  INFO(run.out);
  REQUIRE(run.status == 0);
  // What 9.0 has in a launch takes three below. 512 blocks of 8 warps, a pack of 8 channels a
  // thread, with a store. 256 blocks of the sums, two packs: two loads each, of which one pair goes
  // before the loop, with 5 of gamma, beta and t, and one is left out at its end.
  const double elements = 32 * 8 * 8 * 512, warps = 512 * 8, sum_warps = 256 * 8;
  const auto forward = row_of(run.out, "4 | `norm_act_fwd_kernel");
  REQUIRE(forward.size() == 11);
  const auto per_element = [](const std::vector<std::string>& row) { return std::stod(row[10]); };
  CHECK(per_element(forward) ==
        Approx(32 * (warps * 300 + elements / 8 / 32 * 160) / elements).margin(0.05));
  CHECK(row_of(run.out, "1 | `norm_image_fwd_kernel").size() == 11);
  CHECK(row_of(run.out, concat(forward[0], " | H200")).empty());
  CHECK(row_of(run.out, "1 | A100").empty());
  CHECK(row_of(run.out, "1 | H200").size() == 13);
  const auto times = row_of(run.out, concat(forward[0], " | A100"));
  REQUIRE(times.size() == 13);
  CHECK(std::stod(times[9]) ==
        Approx((warps * 300 + elements / 8 / 32 * 160) / 4 / 108 / 1410).margin(0.05));
  const auto sums = row_of(run.out, "6 | `norm_act_sums_kernel");
  REQUIRE(sums.size() == 11);
  const auto sum_times = row_of(run.out, concat(sums[0], " | A100"));
  REQUIRE(sum_times.size() == 13);
  CHECK(std::stod(sum_times[9]) ==
        Approx((sum_warps * 700 + (elements / 8 / 32 - sum_warps) * 200) / 4 / 108 / 1410)
            .margin(0.05));
}

TEST_CASE("bench predicts whole steps, by kernels", "[bench]") {
  const Finished run =
      run_program("bench", {"--cases", "tests", "--predict", "^training_step/(f32|bf16)/"});
  INFO(run.err);
  INFO(run.out);
  REQUIRE(run.status == 0);
  for (const std::string mode : {"f32", "bf16"}) {
    const std::string name = "training_step/" + mode + "/8x8_base_8_batch_2";
    const auto step = row_of(run.out, name);
    REQUIRE(step.size() == 12);
    CHECK(std::stod(step[1]) > 0);
    CHECK(std::stod(step[2]) > 0);
    CHECK(std::stod(step[4]) > 0);
    // The kernels' launches and times are those of the step.
    const size_t table = run.out.find("Kernels of " + name);
    REQUIRE(table != std::string::npos);
    std::istringstream lines(run.out.substr(table, run.out.find("Kernels of", table + 1) - table));
    int launches = 0, below = 0, updates = 0;  // on 9.0, on other cards
    double microseconds = 0, megabytes = 0;
    for (std::string line; std::getline(lines, line);) {
      if (!line.starts_with("| `")) continue;
      const auto cells = row_of(line, "`");
      REQUIRE(cells.size() == 9);
      const size_t both = cells[1].find(" / ");
      launches += std::stoi(cells[1]);
      below += std::stoi(both == std::string::npos ? cells[1] : cells[1].substr(both + 3));
      microseconds += std::stod(cells[4]);
      if (std::stoi(cells[1]) > 0 && cells[3] != "-") megabytes += std::stod(cells[3]);
      if (cells[0].find("adam_step_kernel") != std::string::npos) {
        updates += std::stoi(cells[1]);
        CHECK(std::stod(cells[3]) > 0);
      }
    }
    CHECK(step[11] == (mode == "f32" ? concat(launches, ", below")
                                     : concat(launches, " on 9.0, ", below, " on others, below")));
    CHECK((launches < below) == (mode == "bf16"));
    CHECK(updates == 1);
    // Of the kernels on 9.0, as those of other cards are in its own table's rows.
    CHECK(megabytes == Approx(std::stod(step[2])).margin(0.05 * 60));
    CHECK(microseconds == Approx(std::stod(step[4])).margin(0.05 * 60));
  }
}

TEST_CASE("bench predicts every op and kernel at small sizes", "[bench]") {
  const Finished run = run_program("bench", {"--cases", "tests", "--predict",
                                             "^(kernel/|linear/.*.3,7.|residual_block/.*bf16)"});
  INFO(run.err);
  REQUIRE(run.status == 0);
  for (const char* row :
       {"kernel/adam_step/", "linear/wgrad/tf32/[3,7]", "residual_block/backward/"})
    CHECK(row_of(run.out, row).size() == 12);
}
