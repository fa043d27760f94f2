// Parameters in files, under PyTorch's names and in PyTorch's layouts (OIHW).
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "core/safetensors.h"
#include "layers/unet.h"

namespace tessera {

// The elements of one parameter-shaped tensor in file order, and back.
template <class T>
std::vector<T> to_file_order(FileLayout layout, const Shape& shape, const std::vector<T>& values);
template <class T>
std::vector<T> from_file_order(FileLayout layout, const Shape& shape, const std::vector<T>& values);

// What defines a network, as safetensors metadata.
std::map<std::string, std::string> metadata_of(const UNetConfig& config);

// The network that a file of weights belongs to. Widths, levels, channels and time width come from
// the shapes; groups and activation from the metadata when it has them, else from `defaults`.
// Throws InputError naming the file and the tensor or key that does not fit.
UNetConfig config_of(const SafeTensors& file, const UNetConfig& defaults = {});

// Writes every parameter as f32. Atomic.
void save_weights(Stream& stream, const Parameters& parameters, const UNetConfig& config,
                  const std::filesystem::path& path);

// Sets every parameter from the tensors "<prefix><name>" of the file (F32, F64 or BF16). Throws
// InputError naming file and tensor if one is missing or not finite, has another shape or dtype, or
// if the file holds others under this prefix; then no parameter has changed.
void load_weights(Stream& stream, Parameters& parameters, const SafeTensors& file,
                  const std::string& prefix = "");

}  // namespace tessera
