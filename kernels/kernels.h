// The catalogue: one plain function per operation and direction. Every function checks its
// arguments (throws Error), then runs on the stream's device: on the CPU the fast loops (f32,
// bf16), or, for f64 tensors, plain loops that serve as the oracle of all the others.
//
// Shapes are NHWC for images and KRSC for filters. Outputs are allocated by the caller and every
// element of them is written. A result of a backward function is a `Grad`: where to write, and
// whether to overwrite or to add; an undefined one is not computed. Sums have a fixed order: same
// inputs and thread count, same bits. Inputs and outputs must not overlap unless a comment says so.
//
// Types, where nothing else is said: images, filters, t and the gradients of images and t (x, y, w,
// t, dx, dy, dt) are of one, f32, bf16 or the oracle's f64. Biases, gamma, beta, moments, running
// statistics, losses, targets and the gradients of parameters (dw, db, dgamma, dbeta) are of its
// master_of(): f32, or f64.
#pragma once

#include "core/tensor.h"

namespace tessera {

enum class GradMode { Overwrite, Accumulate };

struct GroupNormSpec {
  int groups = 8;
  float eps = 1e-5f;
};

// Asks a convolution for the moments of its output, for the GroupNorm after it (below). Not every
// kernel has them on its way: `made` says whether they were computed.
struct MomentsOut {
  GroupNormSpec spec;
  Tensor moments;  // [N,groups,2], allocated by the caller
  bool made = false;
};

struct Grad {
  Tensor tensor;
  GradMode mode = GradMode::Overwrite;
  explicit operator bool() const { return tensor.defined(); }
};

// ---- Convolution: y[n,p,q,k] = b[k] + sum_rsc x[n, p*stride+r-pad_h, q*stride+s-pad_w, c]
// w[k,r,s,c]
struct ConvSpec {
  int stride = 1;
  int pad_h = 0, pad_w = 0;
};

// The sizes of one convolution: x [N,H,W,C], w [K,R,S,C], y [N,P,Q,K].
struct ConvProblem {
  int64_t N, H, W, C, K, R, S, P, Q;
  ConvSpec spec;
  // Throws when the shapes do not fit each other.
  static ConvProblem of(const ConvSpec& spec, const Shape& x, const Shape& w);
  Shape x() const { return {N, H, W, C}; }
  Shape w() const { return {K, R, S, C}; }
  Shape y() const { return {N, P, Q, K}; }
  double flops() const { return 2.0 * double(N * P * Q) * double(K * R * S * C); }
};

// Other forms of a filter w [K,R,S,C], in bf16, where they are kept: kernels that read one make
// their own of w if it is undefined. A: channels of w that read an upsampled image.
struct FilterForms {
  Tensor phases = {};         // [K,4,4,A], by upcat_phases
  Tensor turned = {};         // [C-A,R,S,K], by turn_filters
  Tensor turned_phases = {};  // [A,4,4,K], by turn_filters of the phases
};

// Filters as data gradients read them, which are convolutions by the filter turned around:
// turned[c-A,R-1-r,S-1-s,k] = w[k,r,s,c] for the channels of w [K,R,S,C] from A on, which turned
// [C-A,R,S,K] tells. All of one type.
struct TurnedFilter {
  Tensor w, turned;
};
void turn_filters(Stream& stream, std::span<const TurnedFilter> filters);

// b [K] may be undefined. moments: see MomentsOut; may be null.
void conv2d_fwd(Stream& stream, const ConvSpec& spec, const Tensor& x, const Tensor& w,
                const Tensor& b, Tensor& y, MomentsOut* moments = nullptr);
void conv2d_bwd_data(Stream& stream, const ConvSpec& spec, const Tensor& dy, const Tensor& w,
                     Grad dx, const FilterForms& forms = {});
void conv2d_bwd_weight(Stream& stream, const ConvSpec& spec, const Tensor& x, const Tensor& dy,
                       Grad dw, Grad db);

// ---- Linear: y [N,K] = x [N,C] w[K,C]^T + b [K]; b may be undefined, and dw or db.
void linear_fwd(Stream& stream, const Tensor& x, const Tensor& w, const Tensor& b, Tensor& y);
void linear_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w, Grad dx);
void linear_bwd_weight(Stream& stream, const Tensor& x, const Tensor& dy, Grad dw, Grad db);

// ---- The columns of x [N,C] apart: y_i [N,K_i] are the next K_i of them; the K_i, widths, add up
// to C. A dy_i may be undefined: zeros.
void split_columns_fwd(Stream& stream, const Tensor& x, std::span<Tensor> y);
void split_columns_bwd(Stream& stream, std::span<const int64_t> widths, std::span<const Tensor> dy,
                       Grad dx);

// ---- Activations, any shape. GELU: x Phi(x), or its tanh form
// .5 x (1 + tanh(sqrt(2/pi) (x + .044715 x^3))): Hendrycks and Gimpel, "Gaussian error linear
// units" (2016). ReLU: max(x, 0), with derivative 0 at 0; NaN stays NaN.
enum class Activation { Gelu, GeluTanh, Relu };

inline const char* name_of(Activation act) {
  return act == Activation::Gelu ? "gelu" : act == Activation::GeluTanh ? "gelu-tanh" : "relu";
}

void activation_fwd(Stream& stream, Activation act, const Tensor& x, Tensor& y);
void activation_bwd(Stream& stream, Activation act, const Tensor& x, const Tensor& dy, Grad dx);

// ---- GroupNorm: y = (x - mean) * rstd * gamma + beta, mean and biased variance over H, W and the
// C/groups channels of a group. Wu and He, "Group normalization" (2018). x [N,H,W,C], gamma and
// beta [C]; moments [N,groups,2] receives mean and rstd = 1/sqrt(variance + eps) for the way back.
// known: moments holds those of x, or others to use in their place. No image may be empty.
void group_norm_fwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x, const Tensor& gamma,
                    const Tensor& beta, Tensor& y, Tensor& moments, bool known = false);
void group_norm_bwd(Stream& stream, const GroupNormSpec& spec, const Tensor& x,
                    const Tensor& moments, const Tensor& gamma, const Tensor& dy, Grad dx,
                    Grad dgamma, Grad dbeta);

// Fused: y = act(group_norm(x) + t[n,c]) + residual. t [N,C] and residual [N,H,W,C] may be
// undefined. With known moments y may be x in place.
struct NormAct {
  GroupNormSpec norm;
  Activation act = Activation::Gelu;
};

void group_norm_act_fwd(Stream& stream, const NormAct& spec, const Tensor& x, const Tensor& gamma,
                        const Tensor& beta, const Tensor& t, const Tensor& residual, Tensor& y,
                        Tensor& moments, bool known = false);
// The residual's gradient is dy itself, and not this function's business. dx may be dy in place.
// h, unless undefined, receives act(group_norm(x) + t), and may be x in place.
void group_norm_act_bwd(Stream& stream, const NormAct& spec, const Tensor& x, const Tensor& moments,
                        const Tensor& gamma, const Tensor& beta, const Tensor& t, const Tensor& dy,
                        Grad dx, Grad dgamma, Grad dbeta, Grad dt, const Tensor& h = {});
// Whether these two read their tensors once for x [N,H,W,C], moments included, so that no
// convolution need take sums for them (MomentsOut, norm_act_conv2d_bwd).
bool norm_by_images(Stream& stream, const GroupNormSpec& spec, const Shape& x, DType dtype);

// Fused: dx of group_norm_act where its dy is conv2d_bwd_data(dy, w): the way back through
// conv2d(act(group_norm(x) + t), w), all but dw. t may be undefined.
void norm_act_conv2d_bwd(Stream& stream, const NormAct& spec, const ConvSpec& conv, const Tensor& x,
                         const Tensor& moments, const Tensor& gamma, const Tensor& beta,
                         const Tensor& t, const Tensor& w, const Tensor& dy, Grad dx, Grad dgamma,
                         Grad dbeta, Grad dt, const FilterForms& forms = {});

// ---- BatchNorm: Ioffe and Szegedy, "Batch normalization" (2015), as torch.nn.BatchNorm2d. The
// norm itself is group_norm of the batch seen as one image, x [1,N*H,W,C] in C groups, whose
// moments [1,C,2] say what is left. mean and var [C] are the running statistics.
struct BatchNormSpec {
  float eps = 1e-5f, momentum = 0.1f;
};
// mean = (1 - momentum) mean + momentum (mean of the batch), and var likewise, with the unbiased
// variance of `count` values, at least two, a channel.
void batch_norm_update(Stream& stream, const BatchNormSpec& spec, int64_t count,
                       const Tensor& moments, Tensor& mean, Tensor& var);
// The moments to use in evaluation: mean and 1/sqrt(var + eps).
void batch_norm_moments(Stream& stream, const BatchNormSpec& spec, const Tensor& mean,
                        const Tensor& var, Tensor& moments);

// ---- Transposed convolution, 2x2 with stride 2: y[n,2h+r,2w+s,k] = b[k] + sum_c x[n,h,w,c]
// w[c,r,s,k]. x [N,H,W,C], w [C,2,2,K], b [K] -> y [N,2H,2W,K]; b may be undefined. It is the
// data's gradient of conv2d with stride 2 and that w, plus a bias.
void conv_transpose2d_fwd(Stream& stream, const Tensor& x, const Tensor& w, const Tensor& b,
                          Tensor& y);
void conv_transpose2d_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w, Grad dx);
void conv_transpose2d_bwd_weight(Stream& stream, const Tensor& x, const Tensor& dy, Grad dw,
                                 Grad db);

// ---- Pooling of 2x2 patches: x [N,H,W,C], H and W even -> y [N,H/2,W/2,C]. A maximum's gradient
// goes to the first pixel in row order that has it; NaN is above all numbers, a later NaN above an
// earlier one (as in PyTorch). x in pool_bwd may be undefined for an average.
enum class Pooling { Max, Average };

inline const char* name_of(Pooling pooling) { return pooling == Pooling::Max ? "max" : "average"; }

void pool_fwd(Stream& stream, Pooling pooling, const Tensor& x, Tensor& y);
void pool_bwd(Stream& stream, Pooling pooling, const Tensor& x, const Tensor& dy, Grad dx);

// ---- Layout. space_to_channel: x [N,H,W,C] -> y [N,H/2,W/2,4C], channel c*4 + p1*2 + p2 of y
// holds row p1, column p2 of every 2x2 patch. Each is the other's inverse and transpose.
void space_to_channel(Stream& stream, const Tensor& x, Grad y);
void channel_to_space(Stream& stream, const Tensor& x, Grad y);
// Nearest x2: x [N,H,W,C] -> y [N,2H,2W,C]; dx sums the 2x2 patches of dy.
void upsample_nearest_fwd(Stream& stream, const Tensor& x, Tensor& y);
void upsample_nearest_bwd(Stream& stream, const Tensor& dy, Grad dx);
// Channels of a, then of b: a [N,H,W,A], b [N,H,W,B] -> y [N,H,W,A+B].
void concat_channels_fwd(Stream& stream, const Tensor& a, const Tensor& b, Tensor& y);
void concat_channels_bwd(Stream& stream, const Tensor& dy, Grad da, Grad db);
// Fused: y = concat(upsample(low), skip). low [N,H/2,W/2,A], skip [N,H,W,B].
void concat_upsample_fwd(Stream& stream, const Tensor& low, const Tensor& skip, Tensor& y);
void concat_upsample_bwd(Stream& stream, const Tensor& dy, Grad dlow, Grad dskip);

// ---- Convolution over concat(upsample(low), skip), which is never made: low [N,H/2,W/2,A], skip
// [N,H,W,B], w [K,R,R,A+B] with R 1 or 3, stride 1, same padding, b [K] -> y [N,H,W,K].
// The sub-pixel form of a 3x3 filter in bf16 uses its forms; phases that it makes itself are of a
// filter that is rounded already.
void upcat_conv2d_fwd(Stream& stream, const Tensor& low, const Tensor& skip, const Tensor& w,
                      const FilterForms& forms, const Tensor& b, Tensor& y,
                      MomentsOut* moments = nullptr);
void upcat_conv2d_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w,
                           const FilterForms& forms, Grad dlow, Grad dskip);
void upcat_conv2d_bwd_weight(Stream& stream, const Tensor& low, const Tensor& skip,
                             const Tensor& dy, Grad dw, Grad db);
// The sub-pixel form: at output pixels (2y+p, 2x+q) the 3x3 filter w [K,3,3,A+B] is a 2x2 filter
// over low, phases[k,2p+q,2u+v,a] = sum of w[k,r,s,a] over (r+1-p)/2 = u, (s+1-q)/2 = v.
// phases [K,4,4,A] is bf16, where w is f32 or bf16; on the CPU it may be of w's type, too. All
// w are of one type.
struct PhasedFilter {
  Tensor w, phases;
};
void upcat_phases(Stream& stream, std::span<const PhasedFilter> filters);

// x = value, of any shape, f32 or bf16 (or the oracle's f64).
void fill(Stream& stream, Tensor& x, double value);

// ---- Sums. y = a + b, any shape. y may be a or b in place.
void add_fwd(Stream& stream, const Tensor& a, const Tensor& b, Tensor& y);
// dx = dy or dx += dy.
void add_bwd(Stream& stream, const Tensor& dy, Grad dx);
// y[n,h,w,c] = x[n,h,w,c] + t[n,c]; dt sums over h and w (dx is add_bwd). y may be x in place. t
// and dt have the type of x, or its master_of: a bias, where the batch is seen as one image.
void add_broadcast_fwd(Stream& stream, const Tensor& x, const Tensor& t, Tensor& y);
void add_broadcast_bwd_t(Stream& stream, const Tensor& dy, Grad dt);

// ---- Timestep embedding: t [N] i32 -> y [N,dim] = [sin(t f), cos(t f)], f_i = 10000^(-i/(dim/2)).
void timestep_embedding_fwd(Stream& stream, const Tensor& t, Tensor& y);

// ---- Mean squared error over all elements, one at least: loss [1].
void mse_fwd(Stream& stream, const Tensor& prediction, const Tensor& target, Tensor& loss);
// dloss [1] is the upstream gradient.
void mse_bwd(Stream& stream, const Tensor& prediction, const Tensor& target, const Tensor& dloss,
             Grad dprediction);

// ---- Optimizer, over the flat arenas. norm [1] = Euclidean norm of the gradients.
void grad_norm(Stream& stream, const Tensor& grads, Tensor& norm);

// Adam: Kingma and Ba (2015), as torch.optim.Adam; AdamW (decoupled decay): Loshchilov and Hutter
// (2019), as torch.optim.AdamW.
struct AdamSpec {
  double lr = 1e-4, beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double weight_decay = 0;  // decoupled (AdamW)
  double max_norm = 0;      // gradients are scaled by min(1, max_norm / (norm + 1e-6)); 0: never
};

// What an update works on: arenas of n elements of one type (f32), where nothing else is said.
struct AdamTensors {
  Tensor grads;
  Tensor norm;          // [1] from grad_norm; needed to clip, and with a latch
  Tensor params, m, v;  // updated in place
  Tensor copies;        // bf16, or undefined: receives the updated parameters, rounded
  // i64 [1], or undefined. Zero until the norm or the loss of a step is not finite; then the number
  // of that step, whose update and all later ones change nothing. The device decides: no host
  // waits.
  Tensor latch;
  Tensor loss;  // [1], or undefined; looked at only with a latch
  // Both or none, and of updates in f32 only: what depends on the step, read when the update is
  // done rather than when it is issued, which a recorded update is only once. now i64 [1] is the
  // step, factors f32 [8] what adam_factors() gives for it (kernels/adam.h).
  Tensor now = {}, factors = {};
};

// The step-th update (from 1).
void adam_step(Stream& stream, const AdamSpec& spec, int64_t step, AdamTensors t);
// copies [n] bf16 = params [n] f32, rounded: after parameters were loaded.
void copy_rounded(Stream& stream, const Tensor& params, Tensor& copies);

// ---- The noise of a batch. Images u8 [N,H,W,C] become clean = (u8/255 - .5)/.5, and
// noisy = clean + t/1000 * noise_level * N(0,1), each sample keyed by (seed, epoch, sample): the
// same bits on every device and in every batch. A sample is a number from 0 to 2^32 - 1; the CPU
// throws for others, elsewhere their lowest 32 bits count.
struct NoiseSpec {
  uint64_t seed = 0;
  uint32_t epoch = 0;
  float noise_level = 0.5f;
};

// Uniform timesteps in 0..999 of the samples: samples [N] i64 -> t [N] i32.
void draw_timesteps(Stream& stream, const NoiseSpec& spec, const Tensor& samples, Tensor& t);
// Standard deviation of the noise at timestep t.
constexpr float sigma_of(int t, float noise_level) { return float(t) / 1000.0f * noise_level; }
// u8 images to f32 in [-1, 1].
void normalize_images(Stream& stream, const Tensor& images, Tensor& clean);
enum class NoiseUse { Training, Evaluation };
// noisy may be clean in place. Evaluation noise has its own numbers, keyed by timestep where
// training has the epoch.
void add_noise(Stream& stream, const NoiseSpec& spec, NoiseUse use, const Tensor& samples,
               const Tensor& t, const Tensor& clean, Tensor& noisy);

// All of it in one pass, for training: image rows[i] of a set, images u8 [M,H,W,C], becomes image i
// of the batch. rows and samples [N] i64 -> t [N] i32, clean [N,H,W,C] f32, and noisy in f32 or
// rounded from it to bf16. The CPU throws for a row that is not in 0 .. M-1, elsewhere its image
// becomes NaN.
// epoch i64 [1], or undefined, stands for spec.epoch, and is read when the work is done.
void make_batch(Stream& stream, const NoiseSpec& spec, const Tensor& images, const Tensor& rows,
                const Tensor& samples, const Tensor& epoch, Tensor& t, Tensor& clean,
                Tensor& noisy);

// First element of x, f32 or bf16 (or the oracle's f64), that is NaN or infinite: its index, or -1.
// Waits for the stream.
int64_t find_non_finite(Stream& stream, const Tensor& x);

}  // namespace tessera
