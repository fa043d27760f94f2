#include "core/device.h"

#include <omp.h>

#include "core/check.h"

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

bool is_built(DeviceType type) { return type == DeviceType::cpu; }

std::shared_ptr<Device> Device::open(DeviceType type, int threads) {
  if (!is_built(type))
    throw InputError(
        concat("device ", name_of(type),
               " is not in this build: it has kernels for cpu only (use --device cpu)"));
  ENSURE(threads >= 0, "threads is ", threads);
  return std::shared_ptr<Device>(new Device(type, threads > 0 ? threads : omp_get_num_procs()));
}

Device::Device(DeviceType type, int threads)
    : type_(type), threads_(threads), pool_(std::make_shared<Pool>()) {}

void Device::use_threads() const { omp_set_num_threads(threads_); }

}  // namespace tessera
