// What --device means.
#pragma once

#include "core/device.h"

namespace tessera {

// "auto": a GPU if there is one, else the CPU. Else by name.
inline DeviceType chosen_device(const std::string& name) {
  if (name != "auto") return device_type_of(name);
  return has_gpu() ? DeviceType::cuda : DeviceType::cpu;
}

}  // namespace tessera
