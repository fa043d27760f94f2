// Devices by name, and one clear line for those that this build does not have.
#include "core/device.h"
#include "kernels/kernels.h"

#include <omp.h>

#include <algorithm>
#include <catch2/catch.hpp>

#include "core/check.h"
#include "core/simt/options.h"
#include "core/simt/runtime.h"
#include "tests/temp_dir.h"

using namespace tessera;

TEST_CASE("device names", "[device]") {
  for (auto type : {DeviceType::cpu, DeviceType::cuda, DeviceType::simt})
    CHECK(device_type_of(name_of(type)) == type);
  for (const char* name : {"gpu", "", "CPU", "cuda:0"})
    CHECK(message_of<UsageError>([&] { device_type_of(name); }) ==
          concat("unknown device '", name, "': expected cpu, cuda or simt"));
}

TEST_CASE("a GPU that is not there is refused in one line", "[device]") {
  if (has_gpu()) return;  // the other messages: "[simt]" below
  const std::string message = message_of<InputError>([&] { Device::open(DeviceType::cuda); });
  CHECK(message.find("device cuda") == 0);
  CHECK(message.find("--device cpu") != std::string::npos);
  CHECK(message.find('\n') == std::string::npos);
}

TEST_CASE("the host model of a GPU is always there", "[device][simt]") {
  CHECK(is_built(DeviceType::simt));
  const auto device = Device::open(DeviceType::simt, 1);
  CHECK(device->info().capability == simt::options().profile.capability);
  Stream stream(device);
  const std::vector<float> values{1, 2, 3};
  CHECK(Tensor::from<float>(stream, {3}, values).to_vector<float>(stream) == values);
}

TEST_CASE("no driver, an old one and no device have messages of their own", "[device][simt]") {
  const simt::ScopedOptions restore(simt::options());
  const auto message = [](int driver, int devices) {
    simt::options().driver_version = driver;
    simt::options().devices = devices;
    return message_of<InputError>([] { Device::open(DeviceType::simt); });
  };
  CHECK(message(0, 0) == "device cuda: this machine has no NVIDIA driver (use --device cpu)");
  CHECK(message(12040, 1) ==
        "device cuda: the NVIDIA driver is too old: it supports CUDA 12.4, this program was built "
        "with 13.0 (update it, or use --device cpu)");
  CHECK(message(13000, 0) == "device cuda: the NVIDIA driver finds no GPU (use --device cpu)");
}

TEST_CASE("a GPU whose memory is full is there, and says so", "[device][simt]") {
  const simt::ScopedOptions restore(simt::options());
  CHECK(is_there(DeviceType::cpu));
  CHECK(is_there(DeviceType::simt));
  simt::options().total_memory = 0;
  CHECK(is_there(DeviceType::simt));
  CHECK(message_of<OutOfMemory>([] { Device::open(DeviceType::simt); }) ==
        "device cuda: others have filled the GPU's memory (use --device cpu)");
  CHECK(simt::cudaGetLastError() == simt::cudaSuccess);
  simt::options().devices = 0;
  CHECK_FALSE(is_there(DeviceType::simt));
}

TEST_CASE("a GPU without memory says what was asked, used and free", "[device][simt]") {
  const simt::ScopedOptions restore(simt::options());
  simt::options().total_memory = 1 << 20;
  Stream stream(Device::open(DeviceType::simt, 1));
  const Tensor held = Tensor::empty(stream, {1024});
  const std::string message = message_of<OutOfMemory>([&] { Tensor::empty(stream, {1 << 20}); });
  CHECK(message == "out of memory: requested 4194304 bytes, in use 4096 bytes, free 1044480 bytes");
}

TEST_CASE("the cpu uses as many threads as asked, or as the machine has", "[device]") {
  CHECK(is_built(DeviceType::cpu));
  const auto one = Device::open(DeviceType::cpu, 1);
  CHECK(one->threads() == 1);
  const int limit = omp_get_thread_limit();
  CHECK(Device::open(DeviceType::cpu, 3)->threads() == std::min(3, limit));
  const auto all = Device::open(DeviceType::cpu);
  CHECK(all->type() == DeviceType::cpu);
  CHECK(all->threads() == std::min(omp_get_num_procs(), limit));
  CHECK_THROWS_AS(Device::open(DeviceType::cpu, -1), Error);
}

TEST_CASE("a kernel uses the threads of its own device, whichever was opened last", "[device]") {
  Stream one(Device::open(DeviceType::cpu, 1)), two(Device::open(DeviceType::cpu, 2));
  for (Stream* stream : {&one, &two, &one}) {
    omp_set_dynamic(1);
    omp_set_max_active_levels(0);
    Tensor x = Tensor::zeros(*stream, {4});
    activation_fwd(*stream, Activation::Gelu, x, x);
    CHECK(omp_get_max_threads() == stream->device().threads());
    CHECK(omp_get_dynamic() == 0);
    CHECK(omp_get_max_active_levels() == 1);
  }
}

TEST_CASE("devices have pools of their own", "[device]") {
  CHECK(Device::open(DeviceType::cpu)->pool() != Device::open(DeviceType::cpu)->pool());
}

TEST_CASE("streams do not take memory that another one still works on", "[device][simt]") {
  const auto device = Device::open(DeviceType::simt);
  Stream one(device), two(device);
  const std::vector<float> values(1000, 2);
  Tensor result = Tensor::empty(one, {1000});
  {
    const Tensor x = Tensor::from<float>(one, {1000}, values);
    add_fwd(one, x, x, result);  // is queued when x goes
  }
  Tensor other = Tensor::empty(two, {1000});
  other.zero(two);
  two.synchronize();
  CHECK(result.to_vector<float>(one) == std::vector<float>(1000, 4));
}

TEST_CASE("a stream keeps one state of a type", "[device]") {
  struct Counter {
    explicit Counter(Stream&) {}
    int value = 0;
  };
  Stream stream(Device::open(DeviceType::cpu));
  Stream other(Device::open(DeviceType::cpu));
  ++stream.state<Counter>().value;
  ++stream.state<Counter>().value;
  CHECK(stream.state<Counter>().value == 2);
  CHECK(other.state<Counter>().value == 0);
}

TEST_CASE("the memory of a stream that has ended serves others", "[device]") {
  const auto device = Device::open(DeviceType::simt, 1);
  {
    Stream one(device);
    Tensor::empty(one, {1000});
  }
  const int64_t misses = device->pool()->misses();
  {
    Stream two(device);
    Tensor::empty(two, {1000});
  }
  CHECK(device->pool()->misses() == misses);
}
