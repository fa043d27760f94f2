#include "apps/denoiser.h"

namespace tessera {
namespace {

UNetConfig config_for(const SafeTensors& weights, const GivenNetwork& given) {
  UNetConfig wanted;
  for (const auto& [name, text] : given) unet_option(name).set(wanted, text);
  const UNetConfig config = config_of(weights, wanted);
  const bool own = has_own_metadata(weights);
  for (const auto& [name, text] : given)
    if (const std::string has = unet_option(name).get(config);
        has != text && unet_option(name).matters(config))
      throw UsageError(concat("--", name, " is ", text, ", but the ",
                              own ? "metadata of " : "tensors of ", weights.origin(),
                              own ? " says " : " say ", has));
  return config;
}

}  // namespace

Denoiser Denoiser::load(std::shared_ptr<Device> device, const std::filesystem::path& path,
                        const GivenNetwork& given, const Precision& precision) {
  const SafeTensors weights = SafeTensors::read(path);
  return Denoiser(std::move(device), weights, config_for(weights, given), precision);
}

Denoiser::Denoiser(std::shared_ptr<Device> device, const SafeTensors& weights,
                   const UNetConfig& config, const Precision& precision)
    : device_(std::move(device)),
      stream_(std::make_unique<Stream>(device_)),
      weights_(weights.origin()),
      model_(*stream_, config, /*seed=*/0, ops::Fusion::On, precision) {
  load_weights(*stream_, model_.parameters(), weights);
}

void Denoiser::prepare(const Shape& shape) {
  if (shape == shape_) return;
  shape_ = shape;
  stream_ = std::make_unique<Stream>(device_);
  stream_->math = model_.precision().math;
  device_->pool()->trim();
}

Tensor Denoiser::operator()(const Tensor& noisy, const Tensor& t, const std::string& origin) const
    try {
  Tape tape(*stream_, Tape::Mode::Inference);
  Tensor output = model_.forward(tape, model_.input(*stream_, noisy), t).value;
  if (find_non_finite(*stream_, output) >= 0)
    throw InputError(concat(origin, ": the network of ", weights_,
                            " gives NaN or infinity for it: its weights are broken"));
  return output;
} catch (const OutOfMemory& error) {
  throw OutOfMemory(concat(origin, ": ", error.what(), ", for ", noisy.dim(2), "x", noisy.dim(1),
                           " pixels: try a smaller --image-size",
                           device_->type() == DeviceType::cpu ? "" : ", or --device cpu"));
}

}  // namespace tessera
