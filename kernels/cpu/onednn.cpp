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
// Kind, sizes, flags.
using Key = std::array<int64_t, 15>;

memory::desc plain(const memory::dims& dims, Tag tag) {
  return {dims, memory::data_type::f32, tag};
}

Key key_of(Kind kind, const ConvProblem& p, int64_t pitch, bool bias) {
  return {kind, p.N, p.H,           p.W,          p.C,          p.K,   p.R, p.S,
          p.P,  p.Q, p.spec.stride, p.spec.pad_h, p.spec.pad_w, pitch, bias};
}

// The operands of one problem in memory, and a convolution's geometry.
struct Geometry {
  memory::desc x, w, w_plain, b, y;  // w_plain: KRSC
  memory::dims strides, pad_begin, pad_end;

  Geometry() = default;
  Geometry(const ConvProblem& p, int64_t pitch, bool bias)
      : x(plain({p.N, p.C, p.H, p.W}, Tag::nhwc)),
        w(plain({p.K, p.C, p.R, p.S}, Tag::any)),
        w_plain({p.K, p.C, p.R, p.S}, memory::data_type::f32,
                memory::dims{p.R * p.S * pitch, 1, p.S * pitch, pitch}),
        b(bias ? plain({p.K}, Tag::a) : memory::desc()),
        y(plain({p.N, p.K, p.P, p.Q}, Tag::nhwc)),
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

  memory at(const memory::desc& desc, const void* data) const {
    return {desc, engine, const_cast<void*>(data)};
  }
  Tensor workspace(const memory::desc& desc) {
    return Tensor::empty(stream, {int64_t(desc.get_size())}, DType::u8);
  }

  // The entry of `key`, made by `make` when it is new.
  template <class Make>
  Entry& entry(const Key& key, Make make) {
    auto found = entries.find(key);
    if (found == entries.end()) found = entries.emplace(key, make()).first;
    return found->second;
  }

  dnnl::reorder reorder(const memory::desc& from, const memory::desc& to, bool add) const {
    dnnl::primitive_attr attr;
    if (add) attr.set_post_ops(sum_into());
    return dnnl::reorder(dnnl::reorder::primitive_desc(engine, from, engine, to, attr));
  }

  void run(const Entry& e, Args args) {
    Tensor scratch = workspace(e.scratch);
    args.emplace(DNNL_ARG_SCRATCHPAD, at(e.scratch, scratch.raw()));
    e.compute.execute(queue, args);
    queue.wait();
  }

  // A filter as the primitive wants it: w itself, or a copy that lives in `blocked`.
  memory filter(Entry& e, const float* w, Tensor& blocked) {
    if (e.w == e.w_plain) return at(e.w, w);
    blocked = workspace(e.w);
    memory result = at(e.w, blocked.raw());
    memory from = at(e.w_plain, w);
    e.reorder.execute(queue, from, result);
    return result;
  }
};

OneDnn::OneDnn(Stream& stream) : state_(std::make_unique<State>(stream)) {}
OneDnn::~OneDnn() = default;
int64_t OneDnn::primitives() const { return int64_t(state_->entries.size()); }

void OneDnn::conv_fwd(const ConvProblem& p, const float* x, FilterView<const float> w,
                      const float* b, float* y) {
  State& s = *state_;
  Entry& e = s.entry(key_of(kConvForward, p, w.pitch, b != nullptr), [&] {
    const Geometry g(p, w.pitch, b != nullptr);
    const auto desc = forward_desc(g, attributes(), s.engine);
    Entry made(g, dnnl::convolution_forward(desc), desc.weights_desc(), desc.scratchpad_desc());
    made.reorder = s.reorder(g.w_plain, made.w, false);
    return made;
  });
  Tensor blocked;
  Args args{{DNNL_ARG_SRC, s.at(e.x, x)},
            {DNNL_ARG_WEIGHTS, s.filter(e, w.data, blocked)},
            {DNNL_ARG_DST, s.at(e.y, y)}};
  if (b) args.emplace(DNNL_ARG_BIAS, s.at(e.b, b));
  s.run(e, std::move(args));
}

void OneDnn::conv_bwd_data(const ConvProblem& p, const float* dy, FilterView<const float> w,
                           float* dx) {
  State& s = *state_;
  Entry& e = s.entry(key_of(kConvData, p, w.pitch, false), [&] {
    const Geometry g(p, w.pitch, false);
    const auto hint = forward_desc(g, attributes(), s.engine);
    const auto desc = data_desc(g, attributes(), s.engine, hint);
    Entry made(g, dnnl::convolution_backward_data(desc), desc.weights_desc(),
               desc.scratchpad_desc());
    made.reorder = s.reorder(g.w_plain, made.w, false);
    return made;
  });
  Tensor blocked;
  s.run(e, {{DNNL_ARG_DIFF_DST, s.at(e.y, dy)},
            {DNNL_ARG_WEIGHTS, s.filter(e, w.data, blocked)},
            {DNNL_ARG_DIFF_SRC, s.at(e.x, dx)}});
}

void OneDnn::conv_bwd_weight(const ConvProblem& p, const float* x, const float* dy,
                             FilterView<float> dw, GradMode mode, float* db) {
  State& s = *state_;
  Entry& e = s.entry(key_of(kConvWeights, p, dw.pitch, db != nullptr), [&] {
    const Geometry g(p, dw.pitch, db != nullptr);
    const auto hint = forward_desc(g, attributes(), s.engine);
    const auto desc = weights_desc(g, attributes(), s.engine, hint);
    Entry made(g, dnnl::convolution_backward_weights(desc), desc.diff_weights_desc(),
               desc.scratchpad_desc());
    made.reorder = s.reorder(made.w, g.w_plain, false);
    made.reorder_add = s.reorder(made.w, g.w_plain, true);
    return made;
  });
  const bool direct = e.w == e.w_plain && mode == GradMode::Overwrite;
  Tensor blocked = direct ? Tensor() : s.workspace(e.w);
  memory gradient = s.at(e.w, direct ? static_cast<void*>(dw.data) : blocked.raw());
  Args args{{DNNL_ARG_SRC, s.at(e.x, x)},
            {DNNL_ARG_DIFF_DST, s.at(e.y, dy)},
            {DNNL_ARG_DIFF_WEIGHTS, gradient}};
  if (db) args.emplace(DNNL_ARG_DIFF_BIAS, s.at(e.b, db));
  s.run(e, std::move(args));
  if (direct) return;
  memory result = s.at(e.w_plain, dw.data);
  (mode == GradMode::Overwrite ? e.reorder : e.reorder_add).execute(s.queue, gradient, result);
  s.queue.wait();
}

void OneDnn::matmul(int64_t M, int64_t N, int64_t K, MatrixView a, MatrixView b, const float* bias,
                    float* c, GradMode mode) {
  State& s = *state_;
  const bool add = mode == GradMode::Accumulate;
  const Key key{kMatmul, M, N, K, a.row, a.column, b.row, b.column, bias != nullptr, add};
  Entry& e = s.entry(key, [&] {
    const auto f32 = memory::data_type::f32;
    Geometry g;
    g.x = memory::desc({M, K}, f32, memory::dims{a.row, a.column});
    g.w = memory::desc({K, N}, f32, memory::dims{b.row, b.column});
    if (bias) g.b = memory::desc({1, N}, f32, memory::dims{N, 1});
    g.y = memory::desc({M, N}, f32, memory::dims{N, 1});
    dnnl::primitive_attr attr = attributes();
    if (add) attr.set_post_ops(sum_into());
    const auto desc = matmul_desc(g.x, g.w, g.b, g.y, attr, s.engine);
    return Entry(g, dnnl::matmul(desc), g.w, desc.scratchpad_desc());
  });
  Args args{{DNNL_ARG_SRC, s.at(e.x, a.data)},
            {DNNL_ARG_WEIGHTS, s.at(e.w, b.data)},
            {DNNL_ARG_DST, s.at(e.y, c)}};
  if (bias) args.emplace(DNNL_ARG_BIAS, s.at(e.b, bias));
  s.run(e, std::move(args));
}

}  // namespace tessera::cpu
