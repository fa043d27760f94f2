// The numbers of PyTorch: every golden file of TESSERA_GOLDEN_DIR, or of tests/golden/data. See
// tests/golden/README.md for the format and generate.py for the writer.
//
// Tolerances are on norms: |got - expected| <= tolerance * max(|expected|, 1e-3 |all gradients|).
// It is 1e-4 in f32. In f64 it is 1e-5 for the committed files, which were computed in double and
// hold f32; a folder of somebody's own may have been computed in f32 (generate.py --dtype f32). In
// bf16 it is 1e-2 for an operation, and for networks 4e-2 (output), 8e-2 (gradients), 2e-2
// (losses): what rounding to bf16 costs in PyTorch, at worst 2.5e-2 and 5.8e-2, and some room.
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

// What computes, and how exactly.
struct Engine {
  DeviceType device;
  Precision precision;
  const char* name;

  DType storage() const { return precision.storage; }
  bool exact() const { return storage() != DType::bf16 && precision.math == Math::f32; }
  // Of one operation.
  double tolerance() const {
    if (!exact()) return 1e-2;
    return storage() == DType::f64 && asked_folder() == nullptr ? 1e-5 : 1e-4;
  }
  // Of networks.
  double output_tolerance() const { return exact() ? tolerance() : 4e-2; }
  double gradient_tolerance() const { return exact() ? tolerance() : 8e-2; }
  double loss_tolerance() const { return exact() ? 1e-5 : 2e-2; }
};

// The f64 oracle and the CPU, or the CUDA kernels on the host model and, if there is one, on a GPU.
std::vector<Engine> cpu_engines() {
  return {{DeviceType::cpu, Precision::f32(), "cpu f32"},
          {DeviceType::cpu, Precision::f64(), "cpu f64"}};
}
std::vector<Engine> cuda_engines() {
  std::vector<Engine> engines{{DeviceType::simt, Precision::f32(), "simt f32"},
                              {DeviceType::simt, Precision::tf32(), "simt tf32"},
                              {DeviceType::simt, Precision::bf16(), "simt bf16"}};
  if (has_gpu())
    for (Engine engine : std::vector(engines)) {
      engine.device = DeviceType::cuda;
      engine.name = "cuda, the same";
      engines.push_back(engine);
    }
  return engines;
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

// How an input of this name lies in memory where activations are stored in another type.
Role role_of(const std::string& name, const Shape& shape) {
  if (name == "target" || shape.rank() == 1) return Role::Vector;
  return name == "w" || name.ends_with(".weight") ? Role::Weight : Role::Activation;
}

// Everything in the file but y, dy and the gradients is an input; one without gradient is data.
std::map<std::string, Var> inputs_of(Stream& stream, const GoldenFile& file, DType storage) {
  const std::vector<std::string> names = file.file().names();
  std::set<std::string> gradients;
  for (const std::string& name : names)
    if (file.has("d" + name)) gradients.insert("d" + name);
  std::map<std::string, Var> in;
  for (const std::string& name : names) {
    if (name == "y" || gradients.contains(name)) continue;
    const Role role = role_of(name, file.here(name).shape);
    const DType dtype = role == Role::Vector ? master_of(storage) : storage;
    in[name] = Var::leaf(file.tensor(stream, name, dtype), file.has("d" + name));
    if (role != Role::Activation) in[name].slot->dtype = master_of(storage);
  }
  return in;
}

void check_op(Stream& stream, const GoldenFile& file, OpFunction apply, const Engine& engine,
              ops::Fusion fusion) {
  Tape tape(stream);
  const OpFile f{file, tape, fusion, inputs_of(stream, file, engine.storage())};
  const Var y = apply(f);
  check_near("output", values_of(stream, y.value), file.here("y"), norm(file.here("y")),
             engine.tolerance());

  const Values one{{1}, {1.0}};  // of a loss
  tape.backward_from(y, tensor_of(stream, file.has("dy") ? file.here("dy") : one, y.value.dtype()));
  double squares = 0;
  for (const auto& [name, var] : f.in)
    if (var.wanted()) squares += std::pow(norm(file.here("d" + name)), 2);
  REQUIRE(squares > 0);
  for (const auto& [name, var] : f.in) {
    if (!var.wanted()) continue;
    const Values expected = file.here("d" + name);
    check_near("gradient of " + name, values_of(stream, var.grad()), expected,
               std::max(norm(expected), 1e-3 * std::sqrt(squares)), engine.tolerance());
  }
}

void check_embedding(Stream& stream, const GoldenFile& file, const Engine& engine) {
  Tape tape(stream);
  const Var y = ops::timestep_embedding(tape, timesteps(stream, file.values("t")),
                                        file.integer("dim"), engine.storage());
  const Values expected = file.values("y");
  check_near("output", values_of(stream, y.value), expected, norm(expected),
             engine.exact() ? 1e-5 : engine.tolerance());
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
    adam_step(stream, spec, file.integer("first_step") + i, {g, norm_of_g, p, m, v, {}, {}, {}});
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
  Engine engine;
  Stream stream{poisoned(engine.device)};
  UNet net;

  Network(const GoldenFile& golden, const Engine& engine, ops::Fusion fusion)
      : file(golden), engine(engine), net(stream, config_of(golden), 0, fusion, engine.precision) {
    net.parameters().prepare_training(stream);
    load_weights(stream, net.parameters(), file.file(), "param.");
  }

  // Forward and backward; returns the output, sets `loss`.
  Tensor pass(const Values& noisy, const Values& clean, const Values& t, double& loss) {
    net.parameters().clear_gradients();
    Tape tape(stream);
    const DType storage = engine.storage();
    const Var x = Var::leaf(tensor_of(stream, channels_last(noisy), storage));
    const Var out = net.forward(tape, x, timesteps(stream, t));
    const Var mse =
        ops::mse(tape, out, tensor_of(stream, channels_last(clean), master_of(storage)));
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
void check_loss(double got, double expected, double tolerance) {
  INFO("loss " << got << ", expected " << expected);
  CHECK(std::abs(got - expected) <= tolerance * std::min(1.0, std::abs(expected)));
}

void check_gradients(const GoldenFile& file, const Engine& engine, ops::Fusion fusion) {
  Network n(file, engine, fusion);
  double loss = 0;
  const Tensor out = n.pass(file.values("noisy"), file.values("x"), file.values("t"), loss);
  const Values expected = file.here("out");
  check_near("output", values_of(n.stream, out), expected, norm(expected),
             engine.output_tolerance());
  check_loss(loss, file.values("loss").data[0], engine.loss_tolerance());

  double squares = 0;
  for (const Parameter& p : n.net.parameters().list())
    squares += std::pow(norm(n.of("grad.", p)), 2);
  for (const Parameter& p : n.net.parameters().list()) {
    const Values gradient = n.of("grad.", p);
    check_near("gradient of " + p.name, values_of(n.stream, p.var.grad()), gradient,
               std::max(norm(gradient), 1e-3 * std::sqrt(squares)), engine.gradient_tolerance());
  }
}

void check_training(const GoldenFile& file, const Engine& engine, ops::Fusion fusion) {
  Network n(file, engine, fusion);
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
    check_loss(loss, losses.data[size_t(step)], engine.loss_tolerance());
    n.net.parameters().finish_gradients(n.stream);
    adam.gradient_norm();
    adam.update();
  }
  const std::set<std::string> exempt = zero_gradients(file);
  REQUIRE(4 * exempt.size() < n.net.parameters().list().size());
  for (const Parameter& p : n.net.parameters().list()) {
    if (exempt.contains(p.name)) continue;
    const Values expected = n.of("after.", p);
    check_near(p.name + " after Adam", values_of(n.stream, p.master), expected, norm(expected),
               engine.exact() ? 1e-4 : engine.loss_tolerance());
  }
}

void check_operations(const std::vector<Engine>& engines) {
  for (const Engine& engine : engines) {
    Stream stream(poisoned(engine.device));
    stream.math = engine.precision.math;
    for (const fs::path& path : golden_files("ops")) {
      const GoldenFile file(path);
      const std::string op = file.attribute("op");
      INFO(path.filename() << " on " << engine.name);
      if (op == "timestep_embedding") {
        check_embedding(stream, file, engine);
      } else if (op == "adam") {
        check_adam(stream, file, master_of(engine.storage()));
      } else {
        INFO("this operation is not known to the test: " << op);
        REQUIRE(op_functions().contains(op));
        for (ops::Fusion fusion : {ops::Fusion::On, ops::Fusion::Off})
          check_op(stream, file, op_functions().at(op), engine, fusion);
      }
    }
  }
}

// Calls check(file, engine, fusion) for every network.
template <class Check>
void for_each_network(const std::vector<Engine>& engines, Check check) {
  for (const fs::path& path : golden_files("unet"))
    for (const Engine& engine : engines)
      for (ops::Fusion fusion : {ops::Fusion::On, ops::Fusion::Off}) {
        INFO(path.filename() << " on " << engine.name
                             << (fusion == ops::Fusion::On ? " fused" : " composed"));
        check(GoldenFile(path), engine, fusion);
      }
}

}  // namespace

TEST_CASE("goldens: operations equal PyTorch, both ways, in f32 and f64", "[golden]") {
  check_operations(cpu_engines());
}

TEST_CASE("goldens: CUDA operations equal PyTorch, both ways", "[golden][cuda]") {
  // In f32: the case tables hold bf16 and tf32 to an oracle that sees the same rounded inputs.
  for (const Engine& engine : cuda_engines())
    if (engine.exact()) check_operations({engine});
}

TEST_CASE("goldens: networks give PyTorch's output and every gradient", "[golden]") {
  for_each_network(cpu_engines(), check_gradients);
}

TEST_CASE("goldens: CUDA networks give PyTorch's output and every gradient", "[golden][cuda]") {
  for_each_network(cuda_engines(), check_gradients);
}

TEST_CASE("goldens: networks train as in PyTorch, losses and parameters", "[golden]") {
  for (const fs::path& path : golden_files("unet"))
    for (const std::string& name : zero_gradients(GoldenFile(path)))
      WARN(path.filename() << ": the gradient of " << name
                           << " is zero, what Adam makes of it is not compared");
  for_each_network({cpu_engines()[0]}, check_training);
}

TEST_CASE("goldens: CUDA networks train as in PyTorch", "[golden][cuda]") {
  for_each_network(cuda_engines(), check_training);
}
