#include "autograd/ops.h"

namespace tessera::ops {
namespace {

// Optional arguments that were left out get a leaf without value, so that every Var has a slot.
Var given(const Var& optional) { return optional.slot ? optional : Var::leaf({}); }

Shape with_channels(const Shape& x, int64_t channels) { return {x[0], x[1], x[2], channels}; }

}  // namespace

Var conv2d(Tape& tape, const ConvSpec& spec, const Var& x, const Var& w, const Var& bias) {
  const Var b = given(bias);
  Var y =
      tape.output(ConvProblem::of(spec, x.shape(), w.shape()).y(), x.value.dtype(), {&x, &w, &b});
  conv2d_fwd(tape.stream(), spec, x.value, w.value, b.value, y.value);
  tape.record("conv2d", {&x, &w, &b}, y, [spec, x, w, b = b.slot](Stream& s, const Tensor& dy) {
    conv2d_bwd_weight(s, spec, x.value, dy, w.slot->out(s), b->out(s));
    conv2d_bwd_data(s, spec, dy, w.value, x.slot->out(s), w.forms);
  });
  return y;
}

Var linear(Tape& tape, const Var& x, const Var& w, const Var& bias) {
  const Var b = given(bias);
  Var y = tape.output({x.shape()[0], w.shape()[0]}, x.value.dtype(), {&x, &w, &b});
  linear_fwd(tape.stream(), x.value, w.value, b.value, y.value);
  tape.record("linear", {&x, &w, &b}, y, [x, w, b = b.slot](Stream& s, const Tensor& dy) {
    linear_bwd_weight(s, x.value, dy, w.slot->out(s), b->out(s));
    linear_bwd_data(s, dy, w.value, x.slot->out(s));
  });
  return y;
}

std::vector<Var> split_columns(Tape& tape, const Var& x, const std::vector<int64_t>& widths) {
  std::vector<Var> parts;
  std::vector<Tensor> y;
  for (const int64_t width : widths) {
    parts.push_back(tape.output({x.shape()[0], width}, x.value.dtype(), {&x}));
    y.push_back(parts.back().value);
  }
  split_columns_fwd(tape.stream(), x.value, y);
  tape.record("split_columns", {&x}, parts,
              [widths, x = x.slot](Stream& s, const std::vector<Tensor>& dy) {
                split_columns_bwd(s, widths, dy, x->out(s));
              });
  return parts;
}

Var activation(Tape& tape, Activation act, const Var& x) {
  Var y = tape.output(x.shape(), x.value.dtype(), {&x});
  activation_fwd(tape.stream(), act, x.value, y.value);
  tape.record(name_of(act), {&x}, y, [act, x](Stream& s, const Tensor& dy) {
    activation_bwd(s, act, x.value, dy, x.slot->out(s));
  });
  return y;
}

Var group_norm(Tape& tape, const GroupNormSpec& spec, const Var& x, const Var& gamma,
               const Var& beta) {
  Var y = tape.output(x.shape(), x.value.dtype(), {&x, &gamma, &beta});
  Tensor moments =
      Tensor::empty(tape.stream(), {x.shape()[0], spec.groups, 2}, master_of(x.value.dtype()));
  group_norm_fwd(tape.stream(), spec, x.value, gamma.value, beta.value, y.value, moments);
  tape.record("group_norm", {&x, &gamma, &beta}, y,
              [spec, x, gamma, beta = beta.slot, moments](Stream& s, const Tensor& dy) {
                group_norm_bwd(s, spec, x.value, moments, gamma.value, dy, x.slot->out(s),
                               gamma.slot->out(s), beta->out(s));
              });
  return y;
}

Var group_norm_act(Tape& tape, const NormAct& spec, const Var& x, const Var& gamma, const Var& beta,
                   const Var& time, const Var& shortcut) {
  const Var t = given(time), residual = given(shortcut);
  Var y = tape.output(x.shape(), x.value.dtype(), {&x, &gamma, &beta, &t, &residual});
  Tensor moments =
      Tensor::empty(tape.stream(), {x.shape()[0], spec.norm.groups, 2}, master_of(x.value.dtype()));
  group_norm_act_fwd(tape.stream(), spec, x.value, gamma.value, beta.value, t.value, residual.value,
                     y.value, moments);
  tape.record(
      "group_norm_act", {&x, &gamma, &beta, &t, &residual}, y,
      [spec, x, gamma, beta, t, residual = residual.slot, moments](Stream& s, const Tensor& dy) {
        add_bwd(s, dy, residual->out(s));
        group_norm_act_bwd(s, spec, x.value, moments, gamma.value, beta.value, t.value, dy,
                           x.slot->out(s), gamma.slot->out(s), beta.slot->out(s), t.slot->out(s));
      });
  return y;
}

Var batch_norm(Tape& tape, const Var& x, const Var& gamma, const Var& beta,
               const BatchNormState& state, bool training) {
  ENSURE(x.shape().rank() == 4, "batch_norm: x is ", x.shape(), ", expected [N,H,W,C]");
  const auto [N, H, W, C] = std::tuple(x.shape()[0], x.shape()[1], x.shape()[2], x.shape()[3]);
  const int64_t count = N * H * W;
  Var y = tape.output(x.shape(), x.value.dtype(), {&x, &gamma, &beta});
  ENSURE(training || !y.wanted(), "batch_norm: no gradients in evaluation");
  ENSURE(!training || count != 1, "batch_norm: x is ", x.shape(),
         ", expected more than one value a channel in training");
  const int64_t images = count > 0;  // an empty batch is none, of which there are no moments
  const Shape as_image{images, N * H, W, C};
  const GroupNormSpec norm{int(C), state.eps};
  const BatchNormSpec spec{state.eps, state.momentum};
  Tensor mean = state.mean, var = state.var;
  Tensor moments = Tensor::empty(tape.stream(), {images, C, 2}, master_of(x.value.dtype()));
  if (images && !training) batch_norm_moments(tape.stream(), spec, mean, var, moments);
  Tensor out = y.value.reshape(as_image);
  group_norm_fwd(tape.stream(), norm, x.value.reshape(as_image), gamma.value, beta.value, out,
                 moments, !training);
  if (images && training) batch_norm_update(tape.stream(), spec, count, moments, mean, var);
  tape.record("batch_norm", {&x, &gamma, &beta}, y,
              [norm, as_image, x, gamma, beta = beta.slot, moments](Stream& s, const Tensor& dy) {
                Grad dx = x.slot->out(s);
                if (dx) dx.tensor = dx.tensor.reshape(as_image);
                group_norm_bwd(s, norm, x.value.reshape(as_image), moments, gamma.value,
                               dy.reshape(as_image), dx, gamma.slot->out(s), beta->out(s));
              });
  return y;
}

Var conv_transpose2d(Tape& tape, const Var& x, const Var& w, const Var& bias) {
  const Var b = given(bias);
  const Shape& in = x.shape();
  Var y = tape.output({in[0], 2 * in[1], 2 * in[2], w.shape()[3]}, x.value.dtype(), {&x, &w, &b});
  conv_transpose2d_fwd(tape.stream(), x.value, w.value, b.value, y.value);
  tape.record("conv_transpose2d", {&x, &w, &b}, y, [x, w, b = b.slot](Stream& s, const Tensor& dy) {
    conv_transpose2d_bwd_weight(s, x.value, dy, w.slot->out(s), b->out(s));
    conv_transpose2d_bwd_data(s, dy, w.value, x.slot->out(s));
  });
  return y;
}

Var pool(Tape& tape, Pooling pooling, const Var& x) {
  const Shape& in = x.shape();
  Var y = tape.output({in[0], in[1] / 2, in[2] / 2, in[3]}, x.value.dtype(), {&x});
  pool_fwd(tape.stream(), pooling, x.value, y.value);
  // An average looks at x no more.
  tape.record(concat(name_of(pooling), "_pool"), {&x}, y,
              [pooling, value = pooling == Pooling::Max ? x.value : Tensor{}, x = x.slot](
                  Stream& s, const Tensor& dy) { pool_bwd(s, pooling, value, dy, x->out(s)); });
  return y;
}

Var space_to_channel(Tape& tape, const Var& x) {
  const Shape& in = x.shape();
  Var y = tape.output({in[0], in[1] / 2, in[2] / 2, in[3] * 4}, x.value.dtype(), {&x});
  space_to_channel(tape.stream(), x.value, Grad{y.value});
  tape.record("space_to_channel", {&x}, y,
              [x = x.slot](Stream& s, const Tensor& dy) { channel_to_space(s, dy, x->out(s)); });
  return y;
}

Var channel_to_space(Tape& tape, const Var& x) {
  const Shape& in = x.shape();
  Var y = tape.output({in[0], in[1] * 2, in[2] * 2, in[3] / 4}, x.value.dtype(), {&x});
  channel_to_space(tape.stream(), x.value, Grad{y.value});
  tape.record("channel_to_space", {&x}, y,
              [x = x.slot](Stream& s, const Tensor& dy) { space_to_channel(s, dy, x->out(s)); });
  return y;
}

Var upsample_nearest(Tape& tape, const Var& x) {
  const Shape& in = x.shape();
  Var y = tape.output({in[0], in[1] * 2, in[2] * 2, in[3]}, x.value.dtype(), {&x});
  upsample_nearest_fwd(tape.stream(), x.value, y.value);
  tape.record("upsample_nearest", {&x}, y, [x = x.slot](Stream& s, const Tensor& dy) {
    upsample_nearest_bwd(s, dy, x->out(s));
  });
  return y;
}

Var concat_channels(Tape& tape, const Var& a, const Var& b) {
  Var y =
      tape.output(with_channels(a.shape(), a.shape()[3] + b.shape()[3]), a.value.dtype(), {&a, &b});
  concat_channels_fwd(tape.stream(), a.value, b.value, y.value);
  tape.record("concat_channels", {&a, &b}, y,
              [a = a.slot, b = b.slot](Stream& s, const Tensor& dy) {
                const Grad da = a->out(s);
                if (a != b) return concat_channels_bwd(s, dy, da, b->out(s));
                concat_channels_bwd(s, dy, da, {});
                concat_channels_bwd(s, dy, {}, b->out(s));  // added to the first half's
              });
  return y;
}

Var concat_upsample(Tape& tape, const Var& low, const Var& skip) {
  Var y = tape.output(with_channels(skip.shape(), low.shape()[3] + skip.shape()[3]),
                      low.value.dtype(), {&low, &skip});
  concat_upsample_fwd(tape.stream(), low.value, skip.value, y.value);
  tape.record("concat_upsample", {&low, &skip}, y,
              [low = low.slot, skip = skip.slot](Stream& s, const Tensor& dy) {
                const Grad dlow = low->out(s);
                concat_upsample_bwd(s, dy, dlow, skip->out(s));
              });
  return y;
}

Var upcat_conv2d(Tape& tape, const Var& low, const Var& skip, const Var& w, const Var& bias) {
  const Var b = given(bias);
  Var y = tape.output(with_channels(skip.shape(), w.shape()[0]), low.value.dtype(),
                      {&low, &skip, &w, &b});
  upcat_conv2d_fwd(tape.stream(), low.value, skip.value, w.value, w.forms, b.value, y.value);
  tape.record("upcat_conv2d", {&low, &skip, &w, &b}, y,
              [low, skip, w, b = b.slot](Stream& s, const Tensor& dy) {
                upcat_conv2d_bwd_weight(s, low.value, skip.value, dy, w.slot->out(s), b->out(s));
                upcat_conv2d_bwd_data(s, dy, w.value, w.forms, low.slot->out(s), skip.slot->out(s));
              });
  return y;
}

Var add(Tape& tape, const Var& a, const Var& b) {
  Var y = tape.output(a.shape(), a.value.dtype(), {&a, &b});
  add_fwd(tape.stream(), a.value, b.value, y.value);
  tape.record("add", {&a, &b}, y, [a = a.slot, b = b.slot](Stream& s, const Tensor& dy) {
    add_bwd(s, dy, a->out(s));
    add_bwd(s, dy, b->out(s));
  });
  return y;
}

Var add_broadcast(Tape& tape, const Var& x, const Var& t) {
  Var y = tape.output(x.shape(), x.value.dtype(), {&x, &t});
  add_broadcast_fwd(tape.stream(), x.value, t.value, y.value);
  tape.record("add_broadcast", {&x, &t}, y, [x = x.slot, t = t.slot](Stream& s, const Tensor& dy) {
    add_bwd(s, dy, x->out(s));
    add_broadcast_bwd_t(s, dy, t->out(s));
  });
  return y;
}

Var timestep_embedding(Tape& tape, const Tensor& t, int64_t dim, DType dtype) {
  Var y = tape.output({t.dim(0), dim}, dtype, {});
  timestep_embedding_fwd(tape.stream(), t, y.value);
  tape.record("timestep_embedding", {}, y, nullptr);
  return y;
}

Var mse(Tape& tape, const Var& prediction, const Tensor& target) {
  Var loss = tape.output({1}, master_of(prediction.value.dtype()), {&prediction});
  mse_fwd(tape.stream(), prediction.value, target, loss.value);
  tape.record("mse", {&prediction}, loss, [prediction, target](Stream& s, const Tensor& dy) {
    mse_bwd(s, prediction.value, target, dy, prediction.slot->out(s));
  });
  return loss;
}

}  // namespace tessera::ops
