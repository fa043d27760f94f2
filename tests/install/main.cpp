// Trains a small U-Net for two steps on random images, on the CPU.
#include <cmath>
#include <cstdio>
#include <exception>
#include <random>
#include <vector>

#include "autograd/parameters.h"
#include "core/tensor.h"
#include "layers/unet.h"

using namespace tessera;

int main() try {
  Stream stream(Device::open(DeviceType::cpu));
  UNet model(stream, {.levels = 1, .base = 8, .groups = 4, .time_dim = 8}, /*seed=*/1);
  Parameters& parameters = model.parameters();
  parameters.prepare_training(stream);
  Adam adam(stream, parameters, {.lr = 1e-3});
  const std::vector<float> before = parameters.values.to_vector<float>(stream);

  std::mt19937 random(1);
  const Shape shape{4, 16, 16, 1};
  const auto images = [&] {
    std::vector<float> values(size_t(shape.numel()));
    for (float& value : values) value = float(random()) / 0x1p31f - 1;
    return Tensor::from<float>(stream, shape, values);
  };
  for (int step = 1; step <= 2; ++step) {
    const Tensor clean = images(), noisy = images();
    const Tensor t = Tensor::from<int32_t>(stream, {4}, std::vector<int32_t>{0, 250, 500, 999});
    Tape tape(stream);
    parameters.clear_gradients();
    const Var loss = ops::mse(tape, model.forward(tape, model.input(stream, noisy), t), clean);
    tape.backward(loss);
    parameters.finish_gradients(stream);
    adam.update(loss.value);
    const float value = loss.value.to_vector<float>(stream)[0];
    std::printf("step %d: loss %.6f\n", step, value);
    ENSURE(std::isfinite(value), "step ", step, " has the loss ", value);
  }
  ENSURE(adam.poll() == 0, "the update of step ", adam.poll(), " was left out");
  ENSURE(parameters.values.to_vector<float>(stream) != before, "no parameter has changed");
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
