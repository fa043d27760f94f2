// Times the functions of the catalogue that no op of the case table is: the optimizer, a batch's
// noise, the search for what is not finite, and what is a part of larger operations. Names begin as
// those of ops do: "lesson 64x64", "sweep 8x8".
#include <set>

#include "tests/bench.h"
#include "tests/prediction.h"

namespace tessera {
namespace {

using Call = std::function<void()>;

struct Cases {
  std::vector<KernelCase> list;
  void add(const char* function, const std::string& name, const Mode& mode, const Cost& cost,
           const std::function<Call(Stream&)>& prepare) {
    list.push_back({function, name, mode, cost, prepare});
  }
};

Tensor noise(Stream& stream, const Shape& shape) {
  return random_tensor(stream, shape, DType::f32);
}
Tensor empty(Stream& stream, const Shape& shape, DType dtype = DType::f32) {
  return Tensor::empty(stream, shape, dtype);
}

Tensor numbers(Stream& stream, int64_t N, DType dtype) { return Tensor::zeros(stream, {N}, dtype); }

// n parameters. Without copies in bf16, and with them.
void add_optimizer(Cases& cases, const std::string& name, int64_t n) {
  const double size = double(n);
  for (const Mode& mode : {kF32, kBf16}) {
    const bool copies = mode.arithmetic.storage == DType::bf16;
    const auto adam = [=](Stream& stream) -> Call {
      AdamTensors t;
      t.grads = noise(stream, {n}), t.params = noise(stream, {n});
      t.norm = Tensor::zeros(stream, {1});
      t.m = Tensor::zeros(stream, {n}), t.v = Tensor::zeros(stream, {n});
      if (copies) t.copies = empty(stream, {n}, DType::bf16);
      return [=, &stream, step = int64_t{0}]() mutable { adam_step(stream, {}, ++step, t); };
    };
    cases.add("adam_step", concat(name, n), mode, {12 * size, (copies ? 30 : 28) * size}, adam);
  }
  const auto norm = [n](Stream& stream) -> Call {
    return [&stream, grads = noise(stream, {n}), norm = empty(stream, {1})]() mutable {
      grad_norm(stream, grads, norm);
    };
  };
  cases.add("grad_norm", concat(name, n), kF32, {2 * size, 4 * size}, norm);
  const auto round = [n](Stream& stream) -> Call {
    return
        [&stream, params = noise(stream, {n}), copies = empty(stream, {n}, DType::bf16)]() mutable {
          copy_rounded(stream, params, copies);
        };
  };
  cases.add("copy_rounded", concat(name, n), kF32, {0, 6 * size}, round);
}

// The numbers of N samples, and their embeddings of dim channels.
void add_timesteps(Cases& cases, const std::string& name, int64_t N, int64_t dim) {
  const auto draw = [=](Stream& stream) -> Call {
    return
        [&stream, samples = numbers(stream, N, DType::i64),
         t = empty(stream, {N}, DType::i32)]() mutable { draw_timesteps(stream, {}, samples, t); };
  };
  cases.add("draw_timesteps", concat(name, '[', N, ']'), kF32, {0, 12.0 * double(N)}, draw);
  for (const Mode& mode : {kF32, kBf16}) {
    const DType storage = mode.arithmetic.storage;
    const auto embedding = [=](Stream& stream) -> Call {
      return [&stream, t = numbers(stream, N, DType::i32),
              y = empty(stream, {N, dim}, storage)]() mutable {
        timestep_embedding_fwd(stream, t, y);
      };
    };
    const double bytes = double(N) * (4 + double(dim) * double(size_of(storage)));
    cases.add("timestep_embedding_fwd", concat(name, '[', N, "] -> ", dim), mode, {0, bytes},
              embedding);
  }
}

// Images.
void add_batch(Cases& cases, const std::string& name, const Shape& shape) {
  const int64_t N = shape[0];
  const double pixels = double(shape.numel());
  const auto normalize = [=](Stream& stream) -> Call {
    return [&stream, images = Tensor::zeros(stream, shape, DType::u8),
            clean = empty(stream, shape)]() mutable { normalize_images(stream, images, clean); };
  };
  cases.add("normalize_images", concat(name, shape), kF32, {2 * pixels, 5 * pixels}, normalize);
  const auto add = [=](Stream& stream) -> Call {
    return [&stream, samples = numbers(stream, N, DType::i64), t = numbers(stream, N, DType::i32),
            clean = noise(stream, shape), noisy = empty(stream, shape)]() mutable {
      add_noise(stream, {}, NoiseUse::Training, samples, t, clean, noisy);
    };
  };
  cases.add("add_noise", concat(name, shape), kF32, {0, 8 * pixels}, add);
  for (const Mode& mode : {kF32, kBf16}) {
    const DType storage = mode.arithmetic.storage;
    const auto batch = [=](Stream& stream) -> Call {
      return [&stream, images = Tensor::zeros(stream, shape, DType::u8),
              rows = numbers(stream, N, DType::i64), samples = numbers(stream, N, DType::i64),
              t = empty(stream, {N}, DType::i32), clean = empty(stream, shape),
              noisy = empty(stream, shape, storage)]() mutable {
        make_batch(stream, {}, images, rows, samples, {}, t, clean, noisy);
      };
    };
    const double bytes = double(1 + 4 + size_of(storage)) * pixels;
    cases.add("make_batch", concat(name, shape), mode, {0, bytes}, batch);
  }
}

// Of activations.
void add_passes(Cases& cases, const std::string& name, const Shape& shape) {
  for (const Mode& mode : {kF32, kBf16}) {
    const DType storage = mode.arithmetic.storage;
    const Cost cost{0, double(shape.numel()) * double(size_of(storage))};
    const auto search = [=](Stream& stream) -> Call {
      return [&stream, x = random_tensor(stream, shape, storage)] {
        (void)find_non_finite(stream, x);
      };
    };
    cases.add("find_non_finite", concat(name, shape), mode, cost, search);
    const auto set = [=](Stream& stream) -> Call {
      return [&stream, x = empty(stream, shape, storage)]() mutable { fill(stream, x, 1); };
    };
    cases.add("fill", concat(name, shape), mode, cost, set);
  }
}

// The way back through a block's first norm and second convolution, where norms do not go by
// images.
void add_norm_conv(Cases& cases, const std::string& name, const Shape& shape) {
  const int64_t N = shape[0], C = shape[3];
  const NormAct spec{{8}};
  const ConvSpec same{1, 1, 1};
  const Shape filter{C, 3, 3, C};
  for (const Mode& mode : {kF32, kTf32, kBf16}) {
    const DType storage = mode.arithmetic.storage;
    const auto prepare = [=](Stream& stream) -> Call {
      const auto random = [&](const Shape& s) { return random_tensor(stream, s, storage); };
      const Tensor x = random(shape), t = random({N, C}), w = random(filter), dy = random(shape),
                   gamma = noise(stream, {C}), beta = noise(stream, {C});
      Tensor y = empty(stream, shape, storage), moments = empty(stream, {N, spec.norm.groups, 2});
      group_norm_act_fwd(stream, spec, x, gamma, beta, t, {}, y, moments);
      const Grad dx{y}, dgamma{empty(stream, {C})}, dbeta{empty(stream, {C})},
          dt{empty(stream, {N, C}, storage)};
      FilterForms forms;
      if (storage == DType::bf16) forms.turned = random(filter);
      return [=, &stream] {
        norm_act_conv2d_bwd(stream, spec, same, x, moments, gamma, beta, t, w, dy, dx, dgamma,
                            dbeta, dt, forms);
      };
    };
    const double size = double(shape.numel());
    const Cost cost{ConvProblem::of(same, shape, filter).flops() + 44 * size,
                    (3 * size + double(filter.numel())) * double(size_of(storage))};
    cases.add("norm_act_conv2d_bwd", concat(name, shape), mode, cost, prepare);
  }
}

// Of the filter that reads `width` channels of a skip and twice as many of what is upsampled.
void add_phases(Cases& cases, const std::string& name, int64_t width) {
  const Shape filter{width, 3, 3, 3 * width}, sums{width, 4, 4, 2 * width};
  const auto prepare = [=](Stream& stream) -> Call {
    const std::vector<PhasedFilter> one{{noise(stream, filter), empty(stream, sums, DType::bf16)}};
    return [&stream, one] { upcat_phases(stream, one); };
  };
  // Of each upsampled channel 9 taps are read, and each of 4 phases adds them up to 4 sums.
  const double channels = double(2 * width * width), stored = 16 * 2;
  cases.add("upcat_phases", concat(name, filter), kF32,
            {4 * (9 - 4) * channels, (9 * 4 + stored) * channels}, prepare);
}

// All of `count` filters in one launch.
void add_turned(Cases& cases, const std::string& name, int64_t width, int count) {
  const Shape filter{width, 3, 3, width};
  for (const Mode& mode : {kF32, kBf16}) {
    const DType storage = mode.arithmetic.storage;
    const auto prepare = [=](Stream& stream) -> Call {
      std::vector<TurnedFilter> filters;
      for (int i = 0; i < count; ++i)
        filters.push_back({random_tensor(stream, filter, storage), empty(stream, filter, storage)});
      return [&stream, filters] { turn_filters(stream, filters); };
    };
    const double bytes = 2.0 * count * double(filter.numel()) * double(size_of(storage));
    cases.add("turn_filters", concat(name, count, " of ", filter), mode, {0, bytes}, prepare);
  }
}

// The running statistics of a BatchNorm.
void add_statistics(Cases& cases, const std::string& name, int64_t C) {
  const auto update = [=](Stream& stream) -> Call {
    return [&stream, moments = noise(stream, {1, C, 2}), mean = noise(stream, {C}),
            var = noise(stream, {C})]() mutable {
      batch_norm_update(stream, {}, 1024, moments, mean, var);
    };
  };
  const double bytes = 4 * double(C);
  cases.add("batch_norm_update", concat(name, '[', C, ']'), kF32, {0, 6 * bytes}, update);
  const auto evaluate = [=](Stream& stream) -> Call {
    return [&stream, mean = noise(stream, {C}), var = Tensor::zeros(stream, {C}),
            moments = empty(stream, {1, C, 2})]() mutable {
      batch_norm_moments(stream, {}, mean, var, moments);
    };
  };
  cases.add("batch_norm_moments", concat(name, '[', C, ']'), kF32, {0, 4 * bytes}, evaluate);
}

void add_models(Cases& cases) {
  add_optimizer(cases, "lesson ", 11'400'000);  // its parameters
  add_optimizer(cases, "quick ", 3'270'000);
  for (const Model& m : models()) {
    const std::string name = m.name + " ";
    add_timesteps(cases, name, m.N, 128);
    add_batch(cases, name, {m.N, m.side, m.side, 1});
  }
}

void add_sweep(Cases& cases) {
  std::set<int64_t> sides, widths;
  for (const Stage& s : sweep()) sides.insert(s.side), widths.insert(s.width);
  for (int64_t width : widths) {
    add_optimizer(cases, "sweep ", 9 * width * width);  // of a 3x3 convolution
    add_timesteps(cases, "sweep ", width, width);
  }
  for (int64_t side : sides) add_batch(cases, "sweep ", {16, side, side, 3});
}

void add_stages(Cases& cases) {
  for (const Stage& s : stages()) {
    const std::string name = s.model + " ";
    const Shape shape{s.N, s.side, s.side, s.width};
    add_passes(cases, name, shape);
    add_norm_conv(cases, name, shape);
    add_statistics(cases, name, s.width);
    if (!s.bottleneck) add_phases(cases, name, s.width);
    add_turned(cases, name, s.width, 4);
  }
}

}  // namespace

std::vector<KernelCase> kernel_cases(bool tiny) {
  Cases cases;
  if (tiny) {
    add_optimizer(cases, "", 1000);
    add_timesteps(cases, "", 2, 128);
    add_batch(cases, "", {2, 8, 8, 1});
    add_passes(cases, "", {2, 8, 8, 3});
    add_norm_conv(cases, "", {2, 8, 8, 16});
    add_statistics(cases, "", 3);
    add_phases(cases, "", 8);
    add_turned(cases, "", 16, 3);
  } else {
    add_models(cases);
    add_sweep(cases);
    add_stages(cases);
  }
  return std::move(cases.list);
}

double bench_kernel(benchmark::State& state, Session& session, const KernelCase& c) {
  const double seconds = session.measure(state, c.cost, c.mode, c.prepare(session.stream()));
  if (session.predicts()) session.report(state, count_launches(c, session.counting()), c.mode);
  session.release_memory();
  return seconds;
}

}  // namespace tessera
