#include "core/precision.h"

#include "core/check.h"

namespace tessera {

Precision precision_of(const std::string& name) {
  if (name == "f32") return Precision::f32();
  if (name == "tf32") return Precision::tf32();
  if (name == "bf16") return Precision::bf16();
  throw UsageError(concat("unknown precision '", name, "': expected f32, tf32 or bf16"));
}

std::string resolve_precision(const std::string& name, const std::string& device, int capability) {
  const bool tensor_cores = capability >= 80;  // with bf16 and tf32
  if (name == "auto") return tensor_cores ? "bf16" : "f32";
  if (name == "tf32" && capability == 0)
    throw UsageError(concat("--precision ", name, " is not available on device ", device,
                            " (f32 and bf16 are)"));
  if (name == "tf32" && !tensor_cores)
    throw UsageError(
        concat("--precision tf32 needs a GPU of compute capability 8.0 or more, this "
               "one has ",
               capability / 10, '.', capability % 10));
  return name;
}

}  // namespace tessera
