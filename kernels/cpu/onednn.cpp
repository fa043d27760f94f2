// oneDNN 2.6 and 3.x. Activations are plain NHWC; filters and their gradients use the layout that
// oneDNN picks (plain KRSC would fall back to its reference loops) and are reordered on the way in
// and out. Primitives and descriptors are cached by problem; scratchpads come from the pool.
#include "kernels/cpu/onednn.h"

#include <array>
#include <dnnl.hpp>
#include <map>

namespace tessera::cpu {
namespace {

using dnnl::memory;
using Tag = memory::format_tag;
using Args = std::unordered_map<int, memory>;

enum Kind : int64_t { kConvForward, kConvData, kConvWeights, kMatmul };
// Kind, sizes, types, flags.
using Key = std::array<int64_t, 17>;

[[noreturn]] void fail(const Key& key, const dnnl::error& error) {
  constexpr const char* kNames[] = {"conv_fwd", "conv_bwd_data", "conv_bwd_weight", "matmul"};
  std::string problem;
  for (size_t i = 1; i < key.size(); ++i) problem += concat(' ', key[i]);
  if (error.status == dnnl_out_of_memory)
    throw OutOfMemory(concat("out of memory in oneDNN [", kNames[key[0]], "] of", problem));
  throw_error(kNames[key[0]], __FILE__, __LINE__,
              concat("oneDNN: ", error.what(), ", status ", error.status, ", of", problem));
}

memory::data_type type_of(DType dtype) {
  ENSURE(dtype == DType::f32 || dtype == DType::bf16, "no products of ", name_of(dtype));
  return dtype == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
}

memory::desc plain(const memory::dims& dims, DType dtype, Tag tag) {
  return {dims, type_of(dtype), tag};
}

// Types of a problem's tensors; biases are f32.
struct Types {
  DType x, w, y;
  int64_t code() const { return int64_t(x) * 100 + int64_t(w) * 10 + int64_t(y); }
  // Of the forward pass that a backward pass is told of, whose operands are of one type.
  static Types all(DType dtype) { return {dtype, dtype, dtype}; }
};

Key key_of(Kind kind, const ConvProblem& p, const Types& types, const FilterView& w, bool bias) {
  return {kind, p.N,           p.H,          p.W,          p.C,          p.K,   p.R,     p.S, p.P,
          p.Q,  p.spec.stride, p.spec.pad_h, p.spec.pad_w, types.code(), w.row, w.pitch, bias};
}

// The operands of one problem in memory, and a convolution's geometry.
struct Geometry {
  memory::desc x, w, w_plain, b, y;  // w_plain: KRSC
  memory::dims strides, pad_begin, pad_end;

  Geometry() = default;
  Geometry(const ConvProblem& p, const Types& types, const FilterView& filter, bool bias)
      : x(plain({p.N, p.C, p.H, p.W}, types.x, Tag::nhwc)),
        w(plain({p.K, p.C, p.R, p.S}, types.w, Tag::any)),
        w_plain({p.K, p.C, p.R, p.S}, type_of(types.w),
                memory::dims{filter.row, 1, p.S * filter.pitch, filter.pitch}),
        b(bias ? plain({p.K}, DType::f32, Tag::a) : memory::desc()),
        y(plain({p.N, p.K, p.P, p.Q}, types.y, Tag::nhwc)),
        strides{p.spec.stride, p.spec.stride},
        pad_begin{p.spec.pad_h, p.spec.pad_w},
        pad_end{(p.P - 1) * p.spec.stride + p.R - p.H - p.spec.pad_h,
                (p.Q - 1) * p.spec.stride + p.S - p.W - p.spec.pad_w} {}
};

// A cached problem. w is the filter's layout that the primitive picked.
struct Entry : Geometry {
  dnnl::primitive compute;
  dnnl::reorder reorder;      // KRSC to w, or w to KRSC for gradients
  dnnl::reorder reorder_add;  // w added to KRSC
  memory::desc scratch;

  Entry(const Geometry& geometry, dnnl::primitive primitive, const memory::desc& picked,
        const memory::desc& scratchpad)
      : Geometry(geometry), compute(std::move(primitive)), scratch(scratchpad) {
    w = picked;
  }
};

constexpr auto kDirect = dnnl::algorithm::convolution_direct;
constexpr auto kTraining = dnnl::prop_kind::forward_training;

dnnl::convolution_forward::primitive_desc forward_desc(const Geometry& g,
                                                       const dnnl::primitive_attr& attr,
                                                       const dnnl::engine& engine) {
#if DNNL_VERSION_MAJOR >= 3
  return {engine, kTraining, kDirect, g.x, g.w, g.b, g.y, g.strides, g.pad_begin, g.pad_end, attr};
#else
  return {
      {kTraining, kDirect, g.x, g.w, g.b, g.y, g.strides, g.pad_begin, g.pad_end}, attr, engine};
#endif
}

dnnl::convolution_backward_data::primitive_desc data_desc(
    const Geometry& g, const dnnl::primitive_attr& attr, const dnnl::engine& engine,
    const dnnl::convolution_forward::primitive_desc& hint) {
#if DNNL_VERSION_MAJOR >= 3
  return {engine, kDirect, g.x, g.w, g.y, g.strides, g.pad_begin, g.pad_end, hint, attr};
#else
  return {{kDirect, g.x, g.w, g.y, g.strides, g.pad_begin, g.pad_end}, attr, engine, hint};
#endif
}

dnnl::convolution_backward_weights::primitive_desc weights_desc(
    const Geometry& g, const dnnl::primitive_attr& attr, const dnnl::engine& engine,
    const dnnl::convolution_forward::primitive_desc& hint) {
#if DNNL_VERSION_MAJOR >= 3
  return {engine, kDirect, g.x, g.w, g.b, g.y, g.strides, g.pad_begin, g.pad_end, hint, attr};
#else
  return {{kDirect, g.x, g.w, g.b, g.y, g.strides, g.pad_begin, g.pad_end}, attr, engine, hint};
#endif
}

dnnl::matmul::primitive_desc matmul_desc(const memory::desc& a, const memory::desc& b,
                                         const memory::desc& bias, const memory::desc& c,
                                         const dnnl::primitive_attr& attr,
                                         const dnnl::engine& engine) {
#if DNNL_VERSION_MAJOR >= 3
  return {engine, a, b, bias, c, attr};
#else
  return {{a, b, bias, c}, attr, engine};
#endif
}

dnnl::primitive_attr attributes() {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attr;
}

dnnl::post_ops sum_into() {
  dnnl::post_ops ops;
  ops.append_sum(1.0f);
  return ops;
}

}  // namespace

struct OneDnn::State {
  explicit State(Stream& s) : stream(s), queue(engine) {}

  Stream& stream;
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream queue;
  std::map<Key, Entry> entries;

  // `tensor` from element `first` on.
  memory at(const memory::desc& desc, const Tensor& tensor, int64_t first = 0) const {
    const std::byte* data = tensor.raw() + size_t(first) * size_of(tensor.dtype());
    return {desc, engine, const_cast<std::byte*>(data)};
  }
  Tensor workspace(const memory::desc& desc) {
    return Tensor::empty(stream, {int64_t(desc.get_size())}, DType::u8);
  }

  // use(the entry of `key`), which is made by `make` when it is new.
  template <class Make, class Use>
  void solve(const Key& key, Make make, Use use) {
    try {
      auto found = entries.find(key);
      if (found == entries.end()) found = entries.emplace(key, make()).first;
      use(found->second);
    } catch (const dnnl::error& error) {
      fail(key, error);
    }
  }

  dnnl::reorder reorder(const memory::desc& from, const memory::desc& to, bool add) const {
    dnnl::primitive_attr attr;
    if (add) attr.set_post_ops(sum_into());
    return dnnl::reorder(dnnl::reorder::primitive_desc(engine, from, engine, to, attr));
  }

  void run(const Entry& e, Args args) {
    Tensor scratch = workspace(e.scratch);
    args.emplace(DNNL_ARG_SCRATCHPAD, at(e.scratch, scratch));
    e.compute.execute(queue, args);
    queue.wait();
  }

  // A filter as the primitive wants it: w itself, or a copy that lives in `blocked`.
  memory filter(Entry& e, const FilterView& w, Tensor& blocked) {
    memory from = at(e.w_plain, w.tensor, w.first);
    if (e.w == e.w_plain) return from;
    blocked = workspace(e.w);
    memory result = at(e.w, blocked);
    e.reorder.execute(queue, from, result);
    return result;
  }
};

namespace {

// Newer instruction sets have the bits of those that they include.
bool includes(dnnl::cpu_isa isa) {
  return (unsigned(dnnl::get_effective_cpu_isa()) & unsigned(isa)) == unsigned(isa);
}

}  // namespace

Bf16Products bf16_products() {
  if (includes(dnnl::cpu_isa::avx512_core_amx)) return Bf16Products::Tiles;
  const bool vectors = includes(dnnl::cpu_isa::avx512_core_bf16);
  return vectors ? Bf16Products::Vectors : Bf16Products::Widened;
}
bool has_avx512() { return includes(dnnl::cpu_isa::avx512_core); }

bool product(char ta, int64_t M, int64_t N, int64_t K, const float* a, int64_t a_row,
             const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
  return dnnl_sgemm(ta, 'N', M, N, K, 1.0f, a, a_row, b, b_row, add ? 1.0f : 0.0f, c, c_row) ==
         dnnl_success;
}

OneDnn::OneDnn(Stream& stream) : state_(std::make_unique<State>(stream)) {}
OneDnn::~OneDnn() = default;
int64_t OneDnn::primitives() const { return int64_t(state_->entries.size()); }

void OneDnn::conv_fwd(const ConvProblem& p, const Tensor& x, const FilterView& w, const Tensor& b,
                      const Tensor& y) {
  State& s = *state_;
  const Types types{x.dtype(), w.tensor.dtype(), y.dtype()};
  const auto make = [&] {
    const Geometry g(p, types, w, b.defined());
    const auto desc = forward_desc(g, attributes(), s.engine);
    Entry made(g, dnnl::convolution_forward(desc), desc.weights_desc(), desc.scratchpad_desc());
    made.reorder = s.reorder(g.w_plain, made.w, false);
    return made;
  };
  s.solve(key_of(kConvForward, p, types, w, b.defined()), make, [&](Entry& e) {
    Tensor blocked;
    Args args{{DNNL_ARG_SRC, s.at(e.x, x)},
              {DNNL_ARG_WEIGHTS, s.filter(e, w, blocked)},
              {DNNL_ARG_DST, s.at(e.y, y)}};
    if (b) args.emplace(DNNL_ARG_BIAS, s.at(e.b, b));
    s.run(e, std::move(args));
  });
}

void OneDnn::conv_bwd_data(const ConvProblem& p, const Tensor& dy, const FilterView& w,
                           const Tensor& dx) {
  State& s = *state_;
  const Types types{dx.dtype(), w.tensor.dtype(), dy.dtype()};
  const auto make = [&] {
    const Geometry g(p, types, w, false);
    const auto hint =
        forward_desc(Geometry(p, Types::all(types.y), w, false), attributes(), s.engine);
    const auto desc = data_desc(g, attributes(), s.engine, hint);
    Entry made(g, dnnl::convolution_backward_data(desc), desc.weights_desc(),
               desc.scratchpad_desc());
    made.reorder = s.reorder(g.w_plain, made.w, false);
    return made;
  };
  s.solve(key_of(kConvData, p, types, w, false), make, [&](Entry& e) {
    Tensor blocked;
    s.run(e, {{DNNL_ARG_DIFF_DST, s.at(e.y, dy)},
              {DNNL_ARG_WEIGHTS, s.filter(e, w, blocked)},
              {DNNL_ARG_DIFF_SRC, s.at(e.x, dx)}});
  });
}

void OneDnn::conv_bwd_weight(const ConvProblem& p, const Tensor& x, const Tensor& dy,
                             const FilterView& dw, GradMode mode, const Tensor& db) {
  State& s = *state_;
  const Types types{x.dtype(), dw.tensor.dtype(), dy.dtype()};
  const auto make = [&] {
    const Geometry g(p, types, dw, db.defined());
    const auto hint =
        forward_desc(Geometry(p, Types::all(types.x), dw, db.defined()), attributes(), s.engine);
    const auto desc = weights_desc(g, attributes(), s.engine, hint);
    Entry made(g, dnnl::convolution_backward_weights(desc), desc.diff_weights_desc(),
               desc.scratchpad_desc());
    made.reorder = s.reorder(made.w, g.w_plain, false);
    made.reorder_add = s.reorder(made.w, g.w_plain, true);
    return made;
  };
  s.solve(key_of(kConvWeights, p, types, dw, db.defined()), make, [&](Entry& e) {
    memory result = s.at(e.w_plain, dw.tensor, dw.first);
    const bool direct = e.w == e.w_plain && mode == GradMode::Overwrite;
    Tensor blocked = direct ? Tensor() : s.workspace(e.w);
    memory gradient = direct ? result : s.at(e.w, blocked);
    Args args{{DNNL_ARG_SRC, s.at(e.x, x)},
              {DNNL_ARG_DIFF_DST, s.at(e.y, dy)},
              {DNNL_ARG_DIFF_WEIGHTS, gradient}};
    if (db) args.emplace(DNNL_ARG_DIFF_BIAS, s.at(e.b, db));
    s.run(e, std::move(args));
    if (direct) return;
    (mode == GradMode::Overwrite ? e.reorder : e.reorder_add).execute(s.queue, gradient, result);
    s.queue.wait();
  });
}

void OneDnn::matmul(int64_t M, int64_t N, int64_t K, const MatrixView& a, const MatrixView& b,
                    const Tensor& bias, const Tensor& c, GradMode mode) {
  State& s = *state_;
  const bool add = mode == GradMode::Accumulate;
  const Types types{a.tensor.dtype(), b.tensor.dtype(), c.dtype()};
  const Key key{kMatmul,        M,   N,           K, a.row, a.column, b.row, b.column,
                bias.defined(), add, types.code()};
  const auto make = [&] {
    Geometry g;
    g.x = memory::desc({M, K}, type_of(types.x), memory::dims{a.row, a.column});
    g.w = memory::desc({K, N}, type_of(types.w), memory::dims{b.row, b.column});
    if (bias) g.b = memory::desc({1, N}, memory::data_type::f32, memory::dims{N, 1});
    g.y = memory::desc({M, N}, type_of(types.y), memory::dims{N, 1});
    dnnl::primitive_attr attr = attributes();
    if (add) attr.set_post_ops(sum_into());
    const auto desc = matmul_desc(g.x, g.w, g.b, g.y, attr, s.engine);
    return Entry(g, dnnl::matmul(desc), g.w, desc.scratchpad_desc());
  };
  s.solve(key, make, [&](Entry& e) {
    Args args{{DNNL_ARG_SRC, s.at(e.x, a.tensor)},
              {DNNL_ARG_WEIGHTS, s.at(e.w, b.tensor)},
              {DNNL_ARG_DST, s.at(e.y, c)}};
    if (bias) args.emplace(DNNL_ARG_BIAS, s.at(e.b, bias));
    s.run(e, std::move(args));
  });
}

}  // namespace tessera::cpu
