// Devices by name, and one clear line for those that this build does not have.
#include "core/device.h"
#include "kernels/kernels.h"

#include <omp.h>

#include <catch2/catch.hpp>

#include "core/check.h"
#include "tests/temp_dir.h"

using namespace tessera;

TEST_CASE("device names", "[device]") {
  for (auto type : {DeviceType::cpu, DeviceType::cuda, DeviceType::simt})
    CHECK(device_type_of(name_of(type)) == type);
  for (const char* name : {"gpu", "", "CPU", "cuda:0"})
    CHECK(message_of<UsageError>([&] { device_type_of(name); }) ==
          concat("unknown device '", name, "': expected cpu, cuda or simt"));
}

TEST_CASE("a device that is not in this build is refused in one line", "[device]") {
  for (auto type : {DeviceType::cuda, DeviceType::simt}) {
    CHECK(!is_built(type));
    const std::string message = message_of<InputError>([&] { Device::open(type); });
    CHECK(message.find(concat("device ", name_of(type), " is not in this build")) == 0);
    CHECK(message.find("--device cpu") != std::string::npos);
    CHECK(message.find('\n') == std::string::npos);
  }
}

TEST_CASE("the cpu uses as many threads as asked, or as the machine has", "[device]") {
  CHECK(is_built(DeviceType::cpu));
  const auto one = Device::open(DeviceType::cpu, 1);
  CHECK(one->threads() == 1);
  const auto all = Device::open(DeviceType::cpu);
  CHECK(all->type() == DeviceType::cpu);
  CHECK(all->threads() == omp_get_num_procs());
  CHECK_THROWS_AS(Device::open(DeviceType::cpu, -1), Error);
}

TEST_CASE("a kernel uses the threads of its own device, whichever was opened last", "[device]") {
  Stream one(Device::open(DeviceType::cpu, 1)), two(Device::open(DeviceType::cpu, 2));
  for (Stream* stream : {&one, &two, &one}) {
    Tensor x = Tensor::zeros(*stream, {4});
    gelu_fwd(*stream, GeluForm::Exact, x, x);
    CHECK(omp_get_max_threads() == stream->device().threads());
  }
}

TEST_CASE("devices have pools of their own", "[device]") {
  CHECK(Device::open(DeviceType::cpu)->pool() != Device::open(DeviceType::cpu)->pool());
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
