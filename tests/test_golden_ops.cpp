// Every operation against the numbers of PyTorch.
#include <map>
#include <set>

#include "autograd/residual_block.h"
#include "tests/golden_engines.h"

using namespace tessera;
namespace fs = std::filesystem;

namespace {

struct OpFile {
  const GoldenFile& file;
  Tape& tape;
  ops::Fusion fusion;             // composed or fused, where there are both
  std::map<std::string, Var> in;  // by the file's names

  const Var& operator[](const std::string& name) const { return in.at(name); }
  Activation form() const {
    return file.attribute("form") == "exact" ? Activation::Gelu : Activation::GeluTanh;
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

Var batch_norm(const OpFile& f) {
  return ops::batch_norm(f.tape, f["x"], f["gamma"], f["beta"],
                         {f["mean"].value, f["var"].value, float(f.file.number("eps"))},
                         f.file.integer("training") == 1);
}

Var group_norm_time_gelu(const OpFile& f) {
  const bool residual = f.in.contains("r");
  if (f.fusion == ops::Fusion::On)
    return ops::group_norm_act(f.tape, {f.norm(), f.form()}, f["x"], f["gamma"], f["beta"], f["t"],
                               residual ? f["r"] : Var{});
  Var h = ops::group_norm(f.tape, f.norm(), f["x"], f["gamma"], f["beta"]);
  h = ops::activation(f.tape, f.form(), ops::add_broadcast(f.tape, h, f["t"]));
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
                              {},
                              {}};
  if (f.in.contains("residual_conv.weight")) {
    args.shortcut_w = f["residual_conv.weight"];
    args.shortcut_b = f["residual_conv.bias"];
  }
  const Var t = ops::linear(f.tape, ops::activation(f.tape, f.form(), f["emb"]),
                            f["time_mlp.1.weight"], f["time_mlp.1.bias"]);
  return ops::residual_block(f.tape, f.fusion, f["x"], {}, t, args);
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
      {"gelu", [](const OpFile& f) { return ops::activation(f.tape, f.form(), f["x"]); }},
      {"relu", [](const OpFile& f) { return ops::activation(f.tape, Activation::Relu, f["x"]); }},
      {"batch_norm", batch_norm},
      {"conv_transpose2d",
       [](const OpFile& f) { return ops::conv_transpose2d(f.tape, f["x"], f["w"], f["b"]); }},
      {"max_pool", [](const OpFile& f) { return ops::pool(f.tape, Pooling::Max, f["x"]); }},
      {"average_pool", [](const OpFile& f) { return ops::pool(f.tape, Pooling::Average, f["x"]); }},
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
// The numbers are those that a run in `rounded` sees.
std::map<std::string, Var> inputs_of(Stream& stream, const GoldenFile& file, DType storage,
                                     DType rounded) {
  const std::vector<std::string> names = file.file().names();
  std::set<std::string> gradients;
  for (const std::string& name : names)
    if (file.has("d" + name)) gradients.insert("d" + name);
  std::map<std::string, Var> in;
  for (const std::string& name : names) {
    if (name == "y" || gradients.contains(name)) continue;
    const Values values = file.here(name);
    const Role role = role_of(name, values.shape);
    const DType dtype = role == Role::Vector ? master_of(storage) : storage;
    const bool round = rounded == DType::bf16 && role != Role::Vector;
    in[name] =
        Var::leaf(tensor_of(stream, round ? as_bf16(values) : values, dtype), file.has("d" + name));
    if (role != Role::Activation) in[name].slot->dtype = master_of(storage);
  }
  return in;
}

// The output "y", the gradients "dx", and "mean_after" of an input that the operation changed, as
// in the file.
using Results = std::map<std::string, Values>;

Results results_of(Stream& stream, const GoldenFile& file, OpFunction apply, ops::Fusion fusion,
                   DType storage, DType rounded) {
  Tape tape(stream);
  const OpFile f{file, tape, fusion, inputs_of(stream, file, storage, rounded)};
  const Var y = apply(f);
  Results results{{"y", values_of(stream, y.value)}};
  for (const auto& [name, var] : f.in)
    if (f.in.contains(name + "_after")) results[name + "_after"] = values_of(stream, var.value);
  if (!y.wanted()) return results;
  const Values dy = file.has("dy") ? file.here("dy") : Values{{1}, {1.0}};  // of a loss
  const bool round = rounded == DType::bf16 && file.has("dy");
  tape.backward_from(y, tensor_of(stream, round ? as_bf16(dy) : dy, y.value.dtype()));
  for (const auto& [name, var] : f.in)
    if (var.wanted()) results["d" + name] = values_of(stream, var.grad());
  return results;
}

// The exceptions to the rule are those of the rounded inputs, not of what computes. A norm takes
// away an offset that costs the inputs half their bits: what is expected of the one file that has
// such an offset is what the oracle makes of the rounded inputs. A residual block is three
// operations with products in a chain, whose errors add as squares do: sqrt(3) times 1e-2.
void check_op(Stream& stream, const GoldenFile& file, OpFunction apply, const Engine& engine,
              ops::Fusion fusion) {
  const DType storage = engine.storage();
  const Results got = results_of(stream, file, apply, fusion, storage, storage);
  Results expected;
  for (const auto& [name, values] : got) expected[name] = file.here(name);
  if (storage == DType::bf16 && file.file().origin().ends_with("group_norm_offset.safetensors")) {
    Stream oracle(poisoned_cpu());
    expected = results_of(oracle, file, apply, fusion, DType::f64, storage);
  }
  const bool chain = storage == DType::bf16 && file.attribute("op") == "residual_block";
  const double tolerance = (chain ? std::sqrt(3) : 1) * engine.tolerance();
  double squares = 0;
  for (const auto& [name, values] : expected)
    if (name != "y") squares += std::pow(norm(values), 2);
  REQUIRE(squares > 0);
  for (const auto& [name, values] : expected) {
    const double floor = name == "y" ? 0 : 1e-3 * std::sqrt(squares);
    check_near(name, got.at(name), values, std::max(norm(values), floor), tolerance);
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

}  // namespace

TEST_CASE("goldens: operations equal PyTorch, both ways, in f32, bf16 and f64", "[golden]") {
  check_operations(cpu_engines());
}

TEST_CASE("goldens: CUDA operations equal PyTorch, both ways", "[golden][cuda]") {
  check_operations(cuda_engines());
}
