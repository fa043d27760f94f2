// Times the functions of the catalogue that no tape records: the optimizer and a batch's noise.
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

// n parameters.
void add_optimizer(std::vector<KernelCase>& cases, int64_t n) {
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
  cases.push_back({concat("adam_step/", n), adam, {12 * size, 30 * size}});
  const auto norm = [n](Stream& stream) -> Call {
    return [&stream, grads = noise(stream, {n}), norm = empty(stream, {1})]() mutable {
      grad_norm(stream, grads, norm);
    };
  };
  cases.push_back({concat("grad_norm/", n), norm, {2 * size, 4 * size}});
}

void add_batch(std::vector<KernelCase>& cases, int64_t N, int64_t side) {
  const Shape shape{N, side, side, 1};
  const double pixels = double(shape.numel());
  const auto numbers = [N](Stream& stream, DType dtype) {
    return Tensor::zeros(stream, {N}, dtype);
  };
  const auto normalize = [=](Stream& stream) -> Call {
    return [&stream, images = Tensor::zeros(stream, shape, DType::u8),
            clean = empty(stream, shape)]() mutable { normalize_images(stream, images, clean); };
  };
  cases.push_back({concat("normalize_images/", shape), normalize, {2 * pixels, 5 * pixels}});
  const auto timesteps = [=](Stream& stream) -> Call {
    return
        [&stream, samples = numbers(stream, DType::i64),
         t = empty(stream, {N}, DType::i32)]() mutable { draw_timesteps(stream, {}, samples, t); };
  };
  cases.push_back({concat("draw_timesteps/[", N, ']'), timesteps, {0, 12.0 * double(N)}});
  const auto add = [=](Stream& stream) -> Call {
    return [&stream, samples = numbers(stream, DType::i64), t = numbers(stream, DType::i32),
            clean = noise(stream, shape), noisy = empty(stream, shape)]() mutable {
      add_noise(stream, {}, NoiseUse::Training, samples, t, clean, noisy);
    };
  };
  cases.push_back({concat("add_noise/", shape), add, {0, 8 * pixels}});
  const auto batch = [=](Stream& stream) -> Call {
    return [&stream, images = Tensor::zeros(stream, shape, DType::u8),
            rows = numbers(stream, DType::i64), samples = numbers(stream, DType::i64),
            t = empty(stream, {N}, DType::i32), clean = empty(stream, shape),
            noisy = empty(stream, shape)]() mutable {
      make_batch(stream, {}, images, rows, samples, t, clean, noisy);
    };
  };
  cases.push_back({concat("make_batch/", shape), batch, {0, 9 * pixels}});
  const auto embedding = [=](Stream& stream) -> Call {
    return [&stream, t = numbers(stream, DType::i32), y = empty(stream, {N, 128})]() mutable {
      timestep_embedding_fwd(stream, t, y);
    };
  };
  cases.push_back(
      {concat("timestep_embedding/[", N, "] -> 128"), embedding, {0, 4.0 * double(N) * 129}});
}

}  // namespace

std::vector<KernelCase> kernel_cases(bool tiny) {
  std::vector<KernelCase> cases;
  add_optimizer(cases, tiny ? 1000 : 11'400'000);  // the lesson model's parameters
  if (tiny) {
    add_batch(cases, 2, 8);
  } else {
    add_batch(cases, 32, 64);
    add_batch(cases, 128, 64);
  }
  return cases;
}

}  // namespace tessera
