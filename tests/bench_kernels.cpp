// Times the functions of the catalogue that no tape records: the optimizer, a batch's noise, and
// the search for what is not finite. Names begin as those of ops do: "lesson 64x64", "sweep 8x8".
#include <set>

#include "tests/bench.h"

namespace tessera {
namespace {

using Call = std::function<void()>;

Tensor noise(Stream& stream, const Shape& shape) {
  return random_tensor(stream, shape, DType::f32);
}
Tensor empty(Stream& stream, const Shape& shape, DType dtype = DType::f32) {
  return Tensor::empty(stream, shape, dtype);
}

Tensor numbers(Stream& stream, int64_t N, DType dtype) { return Tensor::zeros(stream, {N}, dtype); }

// n parameters.
void add_optimizer(std::vector<KernelCase>& cases, const std::string& name, int64_t n) {
  const double size = double(n);
  // On the CPU there are no copies in bf16.
  const auto adam = [n](Stream& stream) -> Call {
    AdamTensors t;
    t.grads = noise(stream, {n}), t.params = noise(stream, {n});
    t.norm = Tensor::zeros(stream, {1});
    t.m = Tensor::zeros(stream, {n}), t.v = Tensor::zeros(stream, {n});
    if (stream.device().type() != DeviceType::cpu) t.copies = empty(stream, {n}, DType::bf16);
    return [=, &stream, step = int64_t{0}]() mutable { adam_step(stream, {}, ++step, t); };
  };
  cases.push_back({concat("adam_step/", name, n), adam, {12 * size, 30 * size}});
  const auto norm = [n](Stream& stream) -> Call {
    return [&stream, grads = noise(stream, {n}), norm = empty(stream, {1})]() mutable {
      grad_norm(stream, grads, norm);
    };
  };
  cases.push_back({concat("grad_norm/", name, n), norm, {2 * size, 4 * size}});
  const auto round = [n](Stream& stream) -> Call {
    return
        [&stream, params = noise(stream, {n}), copies = empty(stream, {n}, DType::bf16)]() mutable {
          copy_rounded(stream, params, copies);
        };
  };
  cases.push_back({concat("copy_rounded/", name, n), round, {0, 6 * size}});
}

// The numbers of N samples, and their embeddings of dim channels.
void add_timesteps(std::vector<KernelCase>& cases, const std::string& name, int64_t N,
                   int64_t dim) {
  const auto draw = [=](Stream& stream) -> Call {
    return
        [&stream, samples = numbers(stream, N, DType::i64),
         t = empty(stream, {N}, DType::i32)]() mutable { draw_timesteps(stream, {}, samples, t); };
  };
  cases.push_back({concat("draw_timesteps/", name, '[', N, ']'), draw, {0, 12.0 * double(N)}});
  const auto embedding = [=](Stream& stream) -> Call {
    return [&stream, t = numbers(stream, N, DType::i32), y = empty(stream, {N, dim})]() mutable {
      timestep_embedding_fwd(stream, t, y);
    };
  };
  cases.push_back({concat("timestep_embedding/", name, '[', N, "] -> ", dim),
                   embedding,
                   {0, 4.0 * double(N * (dim + 1))}});
}

// Images.
void add_batch(std::vector<KernelCase>& cases, const std::string& name, const Shape& shape) {
  const int64_t N = shape[0];
  const double pixels = double(shape.numel());
  const auto normalize = [=](Stream& stream) -> Call {
    return [&stream, images = Tensor::zeros(stream, shape, DType::u8),
            clean = empty(stream, shape)]() mutable { normalize_images(stream, images, clean); };
  };
  cases.push_back({concat("normalize_images/", name, shape), normalize, {2 * pixels, 5 * pixels}});
  const auto add = [=](Stream& stream) -> Call {
    return [&stream, samples = numbers(stream, N, DType::i64), t = numbers(stream, N, DType::i32),
            clean = noise(stream, shape), noisy = empty(stream, shape)]() mutable {
      add_noise(stream, {}, NoiseUse::Training, samples, t, clean, noisy);
    };
  };
  cases.push_back({concat("add_noise/", name, shape), add, {0, 8 * pixels}});
  const auto batch = [=](Stream& stream) -> Call {
    return [&stream, images = Tensor::zeros(stream, shape, DType::u8),
            rows = numbers(stream, N, DType::i64), samples = numbers(stream, N, DType::i64),
            t = empty(stream, {N}, DType::i32), clean = empty(stream, shape),
            noisy = empty(stream, shape)]() mutable {
      make_batch(stream, {}, images, rows, samples, {}, t, clean, noisy);
    };
  };
  cases.push_back({concat("make_batch/", name, shape), batch, {0, 9 * pixels}});
}

void add_search(std::vector<KernelCase>& cases, const std::string& name, const Shape& shape) {
  const auto search = [=](Stream& stream) -> Call {
    return [&stream, x = noise(stream, shape)] { (void)find_non_finite(stream, x); };
  };
  cases.push_back(
      {concat("find_non_finite/", name, shape), search, {0, 4.0 * double(shape.numel())}});
}

void add_models(std::vector<KernelCase>& cases) {
  add_optimizer(cases, "lesson ", 11'400'000);  // its parameters
  for (const Model& m : models()) {
    const std::string name = m.name + " ";
    add_timesteps(cases, name, m.N, 128);
    add_batch(cases, name, {m.N, m.side, m.side, 1});
  }
}

void add_sweep(std::vector<KernelCase>& cases) {
  std::set<int64_t> sides, widths;
  for (const Stage& s : sweep()) sides.insert(s.side), widths.insert(s.width);
  for (int64_t width : widths) {
    add_optimizer(cases, "sweep ", 9 * width * width);  // of a 3x3 convolution
    add_timesteps(cases, "sweep ", width, width);
  }
  for (int64_t side : sides) add_batch(cases, "sweep ", {16, side, side, 3});
}

}  // namespace

std::vector<KernelCase> kernel_cases(bool tiny) {
  std::vector<KernelCase> cases;
  if (tiny) {
    add_optimizer(cases, "", 1000);
    add_timesteps(cases, "", 2, 128);
    add_batch(cases, "", {2, 8, 8, 1});
    add_search(cases, "", {2, 8, 8, 3});
  } else {
    add_models(cases);
    add_sweep(cases);
    for (const Stage& s : stages())
      add_search(cases, s.model + " ", {s.N, s.side, s.side, s.width});
  }
  return cases;
}

}  // namespace tessera
