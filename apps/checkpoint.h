// checkpoint.safetensors: all state of a run besides its config.json. Tensors: values, m, v (the
// flat arenas of the parameters and of Adam's moments, F32), step (I64), epoch_loss (F64); with
// BatchNorms also statistics (their running means and variances, F32) and batches (I64).
// Metadata: schema (the version of this list; a file of another one is refused), network (a
// fingerprint of the parameters' names and shapes), images (how many the data set has to train on),
// checksum (see checksum_of), and every setting that the run's numbers depend on.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "autograd/parameters.h"
#include "core/safetensors.h"

namespace tessera {

struct CheckpointState {
  int64_t step = 0;       // updates done
  double epoch_loss = 0;  // sum of the batch losses of the epoch so far
  int64_t images = 0;     // in the training set
  std::map<std::string, std::string> settings = {};
};

// CRC-32 of all that a file says: the metadata, but for `checksum` itself, and every tensor's name,
// type, shape and data.
std::string checksum_of(std::map<std::string, std::string> metadata,
                        const std::map<std::string, SafeTensor>& tensors);

// Atomic: the file is the old or the new one at any moment.
void save_checkpoint(Stream& stream, const Parameters& parameters, const CheckpointState& state,
                     const std::filesystem::path& path);

// Sets the parameters, moments and statistics. Throws InputError naming the file and what does not
// fit this network, these settings and a training set of `images`, or that it is damaged; then
// nothing has changed.
CheckpointState load_checkpoint(Stream& stream, Parameters& parameters,
                                const std::filesystem::path& path, int64_t images,
                                const std::map<std::string, std::string>& settings = {});

}  // namespace tessera
