#include "autograd/residual_block.h"

#include "core/branch.h"

namespace tessera::ops {
namespace {

constexpr ConvSpec kSame3x3{1, 1, 1};
constexpr ConvSpec k1x1{};

Var norm(Tape& tape, const GroupNormSpec& spec, const std::optional<BatchNormState>& batch,
         const Var& x, const Var& gamma, const Var& beta) {
  return batch ? batch_norm(tape, x, gamma, beta, *batch, tape.recording())
               : group_norm(tape, spec, x, gamma, beta);
}

Var plain(Tape& tape, const Var& x, const Var& t, const ResidualBlockArgs& a) {
  Var h = conv2d(tape, kSame3x3, x, a.conv1_w, a.conv1_b);
  h = norm(tape, a.spec.norm, a.batch1, h, a.norm1_gamma, a.norm1_beta);
  join(tape.stream());  // t may be computed beside
  h = activation(tape, a.spec.act, add_broadcast(tape, h, t));
  h = conv2d(tape, kSame3x3, h, a.conv2_w, a.conv2_b);
  h = norm(tape, a.spec.norm, a.batch2, h, a.norm2_gamma, a.norm2_beta);
  h = activation(tape, a.spec.act, h);
  return add(tape, h, a.shortcut_w.slot ? conv2d(tape, k1x1, x, a.shortcut_w, a.shortcut_b) : x);
}

// A convolution of the block's input: of x, or of concat(upsample(x), skip).
void conv_in(Stream& stream, const ConvSpec& spec, const Var& x, const Var& skip, const Var& w,
             const Var& b, Tensor& y, MomentsOut* moments = nullptr) {
  skip.slot ? upcat_conv2d_fwd(stream, x.value, skip.value, w.value, w.forms, b.value, y, moments)
            : conv2d_fwd(stream, spec, x.value, w.value, b.value, y, moments);
}

void conv_in_bwd_data(Stream& stream, const ConvSpec& spec, const Var& x, const Var& skip,
                      const Var& w, const Tensor& dy) {
  const Grad dx = x.slot->out(stream);
  skip.slot ? upcat_conv2d_bwd_data(stream, dy, w.value, w.forms, dx, skip.slot->out(stream))
            : conv2d_bwd_data(stream, spec, dy, w.value, dx, w.forms);
}

// The gradients of a convolution's filter and bias: where they go, and how they are computed later,
// by another stream. Of the tensors that takes it has copies.
class FilterGradients {
 public:
  FilterGradients(Stream& stream, const ConvSpec& spec, const Tensor& x, const Tensor& skip,
                  const Var& w, const Var& b, const Tensor& dy)
      : spec_(spec),
        x_(x),
        skip_(skip),
        dy_(dy),
        dw_(w.slot->out_beside(stream)),
        db_(b.slot->out_beside(stream)) {}
  void operator()(Stream& stream) const {
    skip_ ? upcat_conv2d_bwd_weight(stream, x_, skip_, dy_, dw_, db_)
          : conv2d_bwd_weight(stream, spec_, x_, dy_, dw_, db_);
  }

 private:
  ConvSpec spec_;
  Tensor x_, skip_, dy_;
  Grad dw_, db_;
};

// What the fused block keeps for its way back: its input and the convolutions' outputs.
struct Saved {
  Var x, skip, t;
  ResidualBlockArgs a;
  Tensor y1, y2;  // conv1(x), conv2(h)
  MomentsOut moments1, moments2;
};

// h = act(norm1(y1) + t), conv2's input: one pass, so it is computed again rather than kept.
Tensor second_input(Stream& stream, Saved& k, bool known) {
  Tensor h = Tensor::empty(stream, k.y1.shape(), k.y1.dtype());
  group_norm_act_fwd(stream, k.a.spec, k.y1, k.a.norm1_gamma.value, k.a.norm1_beta.value, k.t.value,
                     {}, h, k.moments1.moments, known);
  return h;
}

// Then convolutions take no sums for norms, and h comes with norm 1's way back.
bool by_images(Stream& stream, const Saved& k) {
  return norm_by_images(stream, k.a.spec.norm, k.y1.shape(), k.y1.dtype());
}

void backward(Stream& stream, Saved& k, Tensor dy) {
  const auto& a = k.a;
  const auto like = [&](const Tensor& t) { return Tensor::empty(stream, t.shape(), t.dtype()); };
  const auto out = [&](const Var& v) { return v.slot->out(stream); };
  std::vector<FilterGradients> filters;

  Tensor d2 = like(k.y2);
  group_norm_act_bwd(stream, a.spec, k.y2, k.moments2.moments, a.norm2_gamma.value,
                     a.norm2_beta.value, {}, dy, {d2}, out(a.norm2_gamma), out(a.norm2_beta), {});
  k.y2 = {};
  Tensor d1;
  if (by_images(stream, k)) {
    d1 = like(k.y1);
    conv2d_bwd_data(stream, kSame3x3, d2, a.conv2_w.value, {d1}, a.conv2_w.forms);
    Tensor h = std::move(k.y1);  // takes its place
    group_norm_act_bwd(stream, a.spec, h, k.moments1.moments, a.norm1_gamma.value,
                       a.norm1_beta.value, k.t.value, d1, {d1}, out(a.norm1_gamma),
                       out(a.norm1_beta), out(k.t), h);
    filters.emplace_back(stream, kSame3x3, h, Tensor{}, a.conv2_w, a.conv2_b, d2);
  } else {
    Tensor h = second_input(stream, k, /*known=*/true);
    conv2d_bwd_weight(stream, kSame3x3, h, d2, out(a.conv2_w), out(a.conv2_b));
    d1 = std::move(h);  // h had its last use: its memory takes a gradient
    norm_act_conv2d_bwd(stream, a.spec, kSame3x3, k.y1, k.moments1.moments, a.norm1_gamma.value,
                        a.norm1_beta.value, k.t.value, a.conv2_w.value, d2, {d1},
                        out(a.norm1_gamma), out(a.norm1_beta), out(k.t), a.conv2_w.forms);
    k.y1 = {};
  }
  d2 = {};
  filters.emplace_back(stream, kSame3x3, k.x.value, k.skip.value, a.conv1_w, a.conv1_b, d1);
  if (a.shortcut_w.slot)
    filters.emplace_back(stream, k1x1, k.x.value, k.skip.value, a.shortcut_w, a.shortcut_b, dy);
  beside(stream, [filters = std::move(filters)](Stream& s) {
    for (const FilterGradients& gradients : filters) gradients(s);
  });

  // Without a shortcut convolution dx = dy + conv1's, in dy's memory if that is free.
  const bool adds = !a.shortcut_w.slot, adopted = adds && k.x.slot->adopt(dy);
  conv_in_bwd_data(stream, kSame3x3, k.x, k.skip, a.conv1_w, d1);
  d1 = {};
  if (adopted) return;
  if (adds) return add_bwd(stream, dy, out(k.x));
  conv_in_bwd_data(stream, k1x1, k.x, k.skip, a.shortcut_w, dy);
}

Var fused(Tape& tape, const Var& x, const Var& skip, const Var& t, const ResidualBlockArgs& a) {
  Stream& stream = tape.stream();
  const DType dtype = x.value.dtype();
  const Shape& in = skip.slot ? skip.shape() : x.shape();
  const int64_t N = in[0], K = a.conv1_w.shape()[0];
  const Shape out_shape{N, in[1], in[2], K};
  const auto activations = [&] { return Tensor::empty(stream, out_shape, dtype); };
  const auto moments = [&] {
    return MomentsOut{a.spec.norm,
                      Tensor::empty(stream, {N, a.spec.norm.groups, 2}, master_of(dtype))};
  };

  auto k = std::make_shared<Saved>(
      Saved{x, skip, t, a, activations(), activations(), moments(), moments()});
  const bool sums = !by_images(stream, *k);
  conv_in(stream, kSame3x3, x, skip, a.conv1_w, a.conv1_b, k->y1, sums ? &k->moments1 : nullptr);
  join(stream);  // t may be computed beside
  conv2d_fwd(stream, kSame3x3, second_input(stream, *k, k->moments1.made), a.conv2_w.value,
             a.conv2_b.value, k->y2, sums ? &k->moments2 : nullptr);

  Tensor shortcut = x.value;
  if (a.shortcut_w.slot) {
    shortcut = activations();
    conv_in(stream, k1x1, x, skip, a.shortcut_w, a.shortcut_b, shortcut);
  }
  const Var none = Var::leaf({});
  const Tape::Inputs inputs{&x,
                            skip.slot ? &skip : &none,
                            &t,
                            &a.conv1_w,
                            &a.conv1_b,
                            &a.norm1_gamma,
                            &a.norm1_beta,
                            &a.conv2_w,
                            &a.conv2_b,
                            &a.norm2_gamma,
                            &a.norm2_beta,
                            a.shortcut_w.slot ? &a.shortcut_w : &none,
                            a.shortcut_b.slot ? &a.shortcut_b : &none};
  Var y = tape.output(out_shape, dtype, inputs);
  group_norm_act_fwd(stream, a.spec, k->y2, a.norm2_gamma.value, a.norm2_beta.value, {}, shortcut,
                     y.value, k->moments2.moments, k->moments2.made);
  tape.record("residual_block", inputs, y,
              [k](Stream& s, Tensor dy) { backward(s, *k, std::move(dy)); });
  return y;
}

}  // namespace

Var residual_block(Tape& tape, Fusion fusion, const Var& x, const Var& skip, const Var& t,
                   const ResidualBlockArgs& args) {
  ENSURE(!args.shortcut_w.slot == !args.shortcut_b.slot, "a shortcut has both weight and bias");
  ResidualBlockArgs joined = args;           // for an input that exists
  if (skip.slot) joined.conv1_w.forms = {};  // these are for its two parts
  if (fusion == Fusion::Off || args.batch1 || args.batch2) {
    const Var in = skip.slot ? concat_channels(tape, upsample_nearest(tape, x), skip) : x;
    return plain(tape, in, t, joined);
  }
  // Without a shortcut convolution the block adds its input, which then has to exist.
  if (skip.slot && !args.shortcut_w.slot)
    return fused(tape, concat_upsample(tape, x, skip), {}, t, joined);
  return fused(tape, x, skip, t, args);
}

}  // namespace tessera::ops
