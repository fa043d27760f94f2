#include "core/check.h"
#include "core/device.h"

namespace tessera {

const char* name_of(DeviceType type) {
  switch (type) {
    case DeviceType::cpu:
      return "cpu";
    case DeviceType::cuda:
      return "cuda";
    case DeviceType::simt:
      return "simt";
  }
  return "?";
}

DeviceType device_type_of(const std::string& name) {
  for (auto type : {DeviceType::cpu, DeviceType::cuda, DeviceType::simt})
    if (name == name_of(type)) return type;
  throw UsageError(concat("unknown device '", name, "': expected cpu, cuda or simt"));
}

}  // namespace tessera
