// The numbers of PyTorch: every golden file of TESSERA_GOLDEN_DIR, or of tests/golden/data. See
// tests/golden/README.md for the format and generate.py for the writer.
//
// Tolerances are on norms: |got - expected| <= tolerance * max(|expected|, 1e-3 |all gradients|).
// It is 1e-4. In f64 it is 1e-5 for the committed files, which were computed in double and hold
// f32; a folder of somebody's own may have been computed in f32 (generate.py --dtype f32).
#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <map>
#include <set>

#include "layers/weights.h"
#include "tests/golden_file.h"

using namespace tessera;
namespace fs = std::filesystem;

namespace {

// The folder that somebody asked for, or null.
const char* asked_folder() { return std::getenv("TESSERA_GOLDEN_DIR"); }

double tolerance(DType dtype) {
  return dtype == DType::f64 && asked_folder() == nullptr ? 1e-5 : 1e-4;
}

// The files of root/kind, sorted. A missing or empty folder fails the test; one that somebody asked
// for may hold networks only, or operations only.
std::vector<fs::path> golden_files(const std::string& kind) {
  const char* asked = asked_folder();
  const fs::path root = asked ? fs::path(asked) : fs::path(TESSERA_TEST_DIR) / "golden" / "data";
  INFO("golden files are looked for in " << root);
  REQUIRE(fs::is_directory(root));
  std::vector<fs::path> files;
  size_t all = 0;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    if (entry.path().extension() != ".safetensors") continue;
    ++all;
    const fs::path folder = entry.path().parent_path().filename();
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
void check_near(const std::string& what, const Values& got, const Values& expected, double scale,
                double tolerance) {
  INFO(what << " " << got.shape << ": error " << distance(got, expected) << ", allowed "
            << tolerance * scale);
  CHECK(distance(got, expected) <= tolerance * scale);
}

// ---- Operations

struct OpFile {
  const GoldenFile& file;
  Tape& tape;
  ops::Fusion fusion;             // composed or fused, where there are both
  std::map<std::string, Var> in;  // by the file's names

  const Var& operator[](const std::string& name) const { return in.at(name); }
  GeluForm form() const {
    return file.attribute("form") == "exact" ? GeluForm::Exact : GeluForm::Tanh;
  }
  GroupNormSpec norm() const { return {file.integer("groups"), float(file.number("eps"))}; }
};

Var conv2d(const OpFile& f) {
  const int padding = f.file.integer("padding");
  return ops::conv2d(f.tape, {f.file.integer("stride"), padding, padding}, f["x"], f["w"], f["b"]);
}

Var upsample_nearest(const OpFile& f) {
  REQUIRE(f.file.integer("factor") == 2);
  return ops::upsample_nearest(f.tape, f["x"]);
}

Var group_norm_time_gelu(const OpFile& f) {
  const bool residual = f.in.contains("r");
  if (f.fusion == ops::Fusion::On)
    return ops::group_norm_gelu(f.tape, {f.norm(), f.form()}, f["x"], f["gamma"], f["beta"], f["t"],
                                residual ? f["r"] : Var{});
  Var h = ops::group_norm(f.tape, f.norm(), f["x"], f["gamma"], f["beta"]);
  h = ops::gelu(f.tape, f.form(), ops::add_broadcast(f.tape, h, f["t"]));
  return residual ? ops::add(f.tape, h, f["r"]) : h;
}

Var residual_block(const OpFile& f) {
  ops::ResidualBlockArgs args{{f.norm(), f.form()},
                              f["conv1.weight"],
                              f["conv1.bias"],
                              f["norm1.weight"],
                              f["norm1.bias"],
                              f["conv2.weight"],
                              f["conv2.bias"],
                              f["norm2.weight"],
                              f["norm2.bias"],
                              f["time_mlp.1.weight"],
                              f["time_mlp.1.bias"],
                              {},
                              {}};
  if (f.in.contains("residual_conv.weight")) {
    args.shortcut_w = f["residual_conv.weight"];
    args.shortcut_b = f["residual_conv.bias"];
  }
  const Var time = ops::gelu(f.tape, f.form(), f["emb"]);
  return ops::residual_block(f.tape, f.fusion, f["x"], {}, time, args);
}

using OpFunction = Var (*)(const OpFile&);
const std::map<std::string, OpFunction>& op_functions() {
  static const std::map<std::string, OpFunction> functions{
      {"conv2d", conv2d},
      {"linear", [](const OpFile& f) { return ops::linear(f.tape, f["x"], f["w"], f["b"]); }},
      {"group_norm",
       [](const OpFile& f) {
         return ops::group_norm(f.tape, f.norm(), f["x"], f["gamma"], f["beta"]);
       }},
      {"gelu", [](const OpFile& f) { return ops::gelu(f.tape, f.form(), f["x"]); }},
      {"group_norm_time_gelu", group_norm_time_gelu},
      {"space_to_channel", [](const OpFile& f) { return ops::space_to_channel(f.tape, f["x"]); }},
      {"channel_to_space", [](const OpFile& f) { return ops::channel_to_space(f.tape, f["x"]); }},
      {"upsample_nearest", upsample_nearest},
      {"concat_channels",
       [](const OpFile& f) { return ops::concat_channels(f.tape, f["a"], f["b"]); }},
      {"add_broadcast", [](const OpFile& f) { return ops::add_broadcast(f.tape, f["x"], f["t"]); }},
      {"mse", [](const OpFile& f) { return ops::mse(f.tape, f["x"], f["target"].value); }},
      {"residual_block", residual_block}};
  return functions;
}

// Everything in the file but y, dy and the gradients is an input; one without gradient is data.
std::map<std::string, Var> inputs_of(Stream& stream, const GoldenFile& file, DType dtype) {
  const std::vector<std::string> names = file.file().names();
  std::set<std::string> gradients;
  for (const std::string& name : names)
    if (file.has("d" + name)) gradients.insert("d" + name);
  std::map<std::string, Var> in;
  for (const std::string& name : names)
    if (name != "y" && !gradients.contains(name))
      in[name] = Var::leaf(file.tensor(stream, name, dtype), file.has("d" + name));
  return in;
}

void check_op(Stream& stream, const GoldenFile& file, OpFunction apply, DType dtype,
              ops::Fusion fusion) {
  Tape tape(stream);
  const OpFile f{file, tape, fusion, inputs_of(stream, file, dtype)};
  const Var y = apply(f);
  check_near("output", values_of(stream, y.value), file.here("y"), norm(file.here("y")),
             tolerance(dtype));

  const Values one{{1}, {1.0}};  // of a loss
  tape.backward_from(y, tensor_of(stream, file.has("dy") ? file.here("dy") : one, dtype));
  double squares = 0;
  for (const auto& [name, var] : f.in)
    if (var.wanted()) squares += std::pow(norm(file.here("d" + name)), 2);
  REQUIRE(squares > 0);
  for (const auto& [name, var] : f.in) {
    if (!var.wanted()) continue;
    const Values expected = file.here("d" + name);
    check_near("gradient of " + name, values_of(stream, var.grad()), expected,
               std::max(norm(expected), 1e-3 * std::sqrt(squares)), tolerance(dtype));
  }
}

void check_embedding(Stream& stream, const GoldenFile& file, DType dtype) {
  Tape tape(stream);
  const Var y = ops::timestep_embedding(tape, timesteps(stream, file.values("t")),
                                        file.integer("dim"), dtype);
  const Values expected = file.values("y");
  check_near("output", values_of(stream, y.value), expected, norm(expected), 1e-5);
}

// A step moves a parameter by 1e-4 only, so parameters are compared to 2e-7 of their norm.
void check_adam(Stream& stream, const GoldenFile& file, DType dtype) {
  AdamSpec spec;
  spec.lr = file.number("lr"), spec.eps = file.number("eps");
  spec.beta1 = file.number("beta1"), spec.beta2 = file.number("beta2");
  spec.weight_decay = file.number("weight_decay"), spec.max_norm = file.number("max_norm");
  Tensor p = file.tensor(stream, "p", dtype), m = file.tensor(stream, "m", dtype);
  Tensor v = file.tensor(stream, "v", dtype), norm_of_g = Tensor::empty(stream, {1}, dtype);
  for (int64_t i = 0; i < file.values("g").shape[0]; ++i) {
    INFO("step " << i + 1);
    const Tensor g = tensor_of(stream, file.row("g", i), dtype);
    grad_norm(stream, g, norm_of_g);
    adam_step(stream, spec, file.integer("first_step") + i, g, norm_of_g, p, m, v);
    const auto check = [&](const std::string& name, const Tensor& got, double tolerance) {
      const Values expected = file.row(name, i);
      check_near(name, values_of(stream, got), expected, norm(expected), tolerance);
    };
    check("y", p, 2e-7);
    check("ym", m, 1e-6);
    check("yv", v, 1e-6);
  }
}

// ---- Networks

UNetConfig config_of(const GoldenFile& file) {
  UNetConfig config;
  config.levels = file.integer("levels"), config.base = file.integer("base");
  config.channels = file.integer("channels"), config.groups = file.integer("groups");
  config.time_dim = file.integer("time_dim");
  config.gelu = file.attribute("activation") == "gelu" ? GeluForm::Exact : GeluForm::Tanh;
  return config;
}

std::set<std::string> zero_gradients(const GoldenFile& file) {
  std::set<std::string> names;
  std::istringstream list(file.attribute("zero_grad"));
  for (std::string name; std::getline(list, name, ',');) names.insert(name);
  return names;
}

// A network of the file's options with the file's parameters.
struct Network {
  const GoldenFile& file;
  DType dtype;
  Stream stream{poisoned_cpu()};
  UNet net;

  Network(const GoldenFile& golden, DType type, ops::Fusion fusion)
      : file(golden),
        dtype(type),
        net(stream, config_of(golden), 0, fusion,
            type == DType::f64 ? Precision::f64() : Precision::f32()) {
    net.parameters().prepare_training(stream);
    load_weights(stream, net.parameters(), file.file(), "param.");
  }

  // Forward and backward; returns the output, sets `loss`.
  Tensor pass(const Values& noisy, const Values& clean, const Values& t, double& loss) {
    net.parameters().clear_gradients();
    Tape tape(stream);
    const Var x = Var::leaf(tensor_of(stream, channels_last(noisy), dtype));
    const Var out = net.forward(tape, x, timesteps(stream, t));
    const Var mse = ops::mse(tape, out, tensor_of(stream, channels_last(clean), dtype));
    loss = values_of(stream, mse.value).data[0];
    tape.backward(mse);
    return out.value;
  }

  // A tensor of the file that belongs to a parameter, in the parameter's layout.
  Values of(const std::string& prefix, const Parameter& p) const {
    return {p.var.shape(),
            from_file_order(p.layout, p.var.shape(), file.values(prefix + p.name).data)};
  }
};

// Whichever is stricter, absolute or relative.
void check_loss(double got, double expected) {
  INFO("loss " << got << ", expected " << expected);
  CHECK(std::abs(got - expected) <= 1e-5 * std::min(1.0, std::abs(expected)));
}

void check_gradients(const GoldenFile& file, DType dtype, ops::Fusion fusion) {
  Network n(file, dtype, fusion);
  double loss = 0;
  const Tensor out = n.pass(file.values("noisy"), file.values("x"), file.values("t"), loss);
  const Values expected = file.here("out");
  check_near("output", values_of(n.stream, out), expected, norm(expected), tolerance(dtype));
  check_loss(loss, file.values("loss").data[0]);

  double squares = 0;
  for (const Parameter& p : n.net.parameters().list())
    squares += std::pow(norm(n.of("grad.", p)), 2);
  for (const Parameter& p : n.net.parameters().list()) {
    const Values gradient = n.of("grad.", p);
    check_near("gradient of " + p.name, values_of(n.stream, p.var.grad()), gradient,
               std::max(norm(gradient), 1e-3 * std::sqrt(squares)), tolerance(dtype));
  }
}

void check_training(const GoldenFile& file, DType dtype, ops::Fusion fusion) {
  Network n(file, dtype, fusion);
  AdamSpec spec;
  spec.lr = file.number("lr"), spec.eps = file.number("eps");
  spec.beta1 = file.number("beta1"), spec.beta2 = file.number("beta2");
  Adam adam(n.stream, n.net.parameters(), spec);
  const Values losses = file.values("losses");
  REQUIRE(losses.data.size() > 0);
  for (int64_t step = 0; step < losses.shape[0]; ++step) {
    INFO("step " << step + 1);
    double loss = 0;
    n.pass(file.row("step.noisy", step), file.row("step.clean", step), file.row("step.t", step),
           loss);
    check_loss(loss, losses.data[size_t(step)]);
    n.net.parameters().finish_gradients(n.stream);
    adam.gradient_norm();
    adam.update();
  }
  const std::set<std::string> exempt = zero_gradients(file);
  REQUIRE(4 * exempt.size() < n.net.parameters().list().size());
  for (const Parameter& p : n.net.parameters().list()) {
    if (exempt.contains(p.name)) continue;
    const Values expected = n.of("after.", p);
    check_near(p.name + " after Adam", values_of(n.stream, p.var.value), expected, norm(expected),
               1e-4);
  }
}

}  // namespace

TEST_CASE("goldens: operations equal PyTorch, both ways, in f32 and f64", "[golden]") {
  Stream stream(poisoned_cpu());
  for (const fs::path& path : golden_files("ops")) {
    const GoldenFile file(path);
    const std::string op = file.attribute("op");
    for (DType dtype : {DType::f32, DType::f64}) {
      INFO(path.filename() << " in " << name_of(dtype));
      if (op == "timestep_embedding") {
        check_embedding(stream, file, dtype);
      } else if (op == "adam") {
        check_adam(stream, file, dtype);
      } else {
        INFO("this operation is not known to the test: " << op);
        REQUIRE(op_functions().contains(op));
        for (ops::Fusion fusion : {ops::Fusion::On, ops::Fusion::Off})
          check_op(stream, file, op_functions().at(op), dtype, fusion);
      }
    }
  }
}

TEST_CASE("goldens: networks give PyTorch's output and every gradient", "[golden]") {
  for (const fs::path& path : golden_files("unet"))
    for (DType dtype : {DType::f32, DType::f64})
      for (ops::Fusion fusion : {ops::Fusion::On, ops::Fusion::Off}) {
        INFO(path.filename() << " in " << name_of(dtype)
                             << (fusion == ops::Fusion::On ? " fused" : " composed"));
        check_gradients(GoldenFile(path), dtype, fusion);
      }
}

TEST_CASE("goldens: networks train as in PyTorch, losses and parameters", "[golden]") {
  for (const fs::path& path : golden_files("unet")) {
    const GoldenFile file(path);
    for (const std::string& name : zero_gradients(file))
      WARN(path.filename() << ": the gradient of " << name
                           << " is zero, what Adam makes of it is not compared");
    for (ops::Fusion fusion : {ops::Fusion::On, ops::Fusion::Off}) {
      INFO(path.filename() << (fusion == ops::Fusion::On ? " fused" : " composed"));
      check_training(file, DType::f32, fusion);
    }
  }
}
