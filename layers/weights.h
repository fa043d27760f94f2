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

// Whether the metadata is that of save_weights(): then what it does not say is the default.
bool has_own_metadata(const SafeTensors& file);

// The network that a file of weights belongs to. Widths, levels, channels, time width, skips, the
// kind of upsampling, that of downsampling (but for maximum or average) and whether the norms are
// BatchNorms come from names and shapes; everything else from the metadata, or without any
// from `defaults`. Throws InputError naming the file and the tensor or key that does not fit.
UNetConfig config_of(const SafeTensors& file, const UNetConfig& defaults = {});

// Writes every parameter as f32, and the running statistics. Atomic.
void save_weights(Stream& stream, const Parameters& parameters, const UNetConfig& config,
                  const std::filesystem::path& path);

// Sets every parameter, and the running statistics, from the tensors "<prefix><name>" of the file
// (F32, F64 or BF16). Throws InputError naming file and tensor if one is missing or not finite, has
// another shape or dtype, or if the file holds others under this prefix; then no parameter has
// changed.
void load_weights(Stream& stream, Parameters& parameters, const SafeTensors& file,
                  const std::string& prefix = "");

}  // namespace tessera
