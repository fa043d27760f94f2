// What the tests against PyTorch's numbers share: the golden files of TESSERA_GOLDEN_DIR, or of
// tests/golden/data (see tests/golden/README.md for the format and generate.py for the writer),
// what computes, and how near it has to come.
//
// Tolerances are on norms: |got - expected| <= tolerance * max(|expected|, 1e-3 |all gradients|).
// It is 1e-4 in f32. In f64 it is 1e-5 for the committed files, which were computed in double and
// hold f32; a folder of somebody's own may have been computed in f32 (generate.py --dtype f32). In
// bf16 it is 1e-2 for an operation, and for networks 4e-2 (output), 8e-2 (gradients), 2e-2
// (losses): what rounding to bf16 costs in PyTorch, at worst 2.5e-2 and 5.8e-2, and some room. tf32
// has three bits more: half of that for an operation, a quarter for networks, where the worst were
// 1.4e-3, 2.6e-3 and 4.5e-4. How far ten steps of Adam move a parameter, a few thousandths of its
// norm, is compared relative to that way: the worst were 8.6e-4 in f32, 1.5e-2 in tf32 and 0.10 in
// bf16, since the first steps go by the signs of gradients.
//
// Variants of the network are small, and rounding to bf16 costs them in PyTorch at worst 1.9e-2
// (output), 6.5e-2 (gradients), 5.8e-3 (losses) and, by an Adam whose eps is 1e-2, 0.124 of a way.
// Two things are their own. A ReLU's derivative jumps, and rounding moves values across 0: 0.24 of
// a gradient and 0.14 of a way. And a bias before a BatchNorm or an InstanceNorm has the gradient
// 0: what is left is rounding, and is measured by a hundredth of all gradients. It was 2.7e-4 of
// them.
#pragma once

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdlib>

#include "tests/cuda_devices.h"
#include "tests/golden_file.h"
#include "tests/paths.h"

namespace tessera {

// The folder that somebody asked for, or null.
inline const char* asked_folder() { return std::getenv("TESSERA_GOLDEN_DIR"); }

// What computes, and how exactly.
struct Engine {
  DeviceType device;
  Precision precision;
  std::string name;

  DType storage() const { return precision.storage; }
  bool exact() const { return storage() != DType::bf16 && precision.math == Math::f32; }
  // Of one operation.
  double tolerance() const {
    if (!exact()) return storage() == DType::bf16 ? 1e-2 : 5e-3;
    return storage() == DType::f64 && asked_folder() == nullptr ? 1e-5 : 1e-4;
  }
  // Of networks.
  double output_tolerance() const { return exact() ? tolerance() : bf16_share() * 4e-2; }
  double gradient_tolerance(Activation act) const {
    if (exact()) return tolerance();
    return bf16_share() * (act == Activation::Relu ? 0.3 : 8e-2);
  }
  double loss_tolerance() const { return exact() ? 1e-5 : bf16_share() * 2e-2; }
  double moved_tolerance(Activation act) const {
    if (exact()) return 5e-3;
    // Tensor cores round tf32 in their own way. A ReLU that is on the other side of zero then is as
    // wrong as in bf16, only fewer are: 0.087 was seen (docs/gpu-runs.md).
    if (act == Activation::Relu)
      return (device == DeviceType::cuda ? std::sqrt(bf16_share()) : bf16_share()) * 0.3;
    return bf16_share() * 0.16;
  }

 private:
  double bf16_share() const { return storage() == DType::bf16 ? 1 : 0.25; }
};

// The f64 oracle and the CPU, or the CUDA kernels on the host model and, if there is one, on a GPU.
inline std::vector<Engine> cpu_engines() {
  return {{DeviceType::cpu, Precision::f32(), "cpu f32"},
          {DeviceType::cpu, Precision::bf16(), "cpu bf16"},
          {DeviceType::cpu, Precision::f64(), "cpu f64"}};
}
inline std::vector<Engine> cuda_engines() {
  std::vector<Engine> engines;
  for (const DeviceType type : cuda_device_types())
    for (const auto& [precision, name] : {std::pair(Precision::f32(), "f32"),
                                          {Precision::tf32(), "tf32"},
                                          {Precision::bf16(), "bf16"}})
      engines.push_back({type, precision, concat(name_of(type), ' ', name)});
  return engines;
}

// The files of root/kind, sorted. A missing or empty folder fails the test; one that somebody asked
// for may hold networks only, or operations only.
inline std::vector<std::filesystem::path> golden_files(const std::string& kind) {
  const char* asked = asked_folder();
  const std::filesystem::path root =
      asked ? std::filesystem::path(asked) : std::filesystem::path(test_dir()) / "golden" / "data";
  INFO("golden files are looked for in " << root);
  REQUIRE(std::filesystem::is_directory(root));
  std::vector<std::filesystem::path> files;
  size_t all = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (entry.path().extension() != ".safetensors") continue;
    ++all;
    const std::filesystem::path folder = entry.path().parent_path().filename();
    INFO(entry.path() << " is neither in a folder 'ops' nor in a folder 'unet'");
    REQUIRE((folder == "ops" || folder == "unet"));
    if (folder == kind) files.push_back(entry.path());
  }
  REQUIRE(all > 0);
  if (!asked) REQUIRE(!files.empty());
  std::ranges::sort(files);
  return files;
}

// scale: what the error is measured by.
inline void check_near(const std::string& what, const Values& got, const Values& expected,
                       double scale, double tolerance) {
  INFO(what << " " << got.shape << ": error " << distance(got, expected) << ", allowed "
            << tolerance * scale);
  CHECK(distance(got, expected) <= tolerance * scale);
}

}  // namespace tessera
