// Residency's tests on fakes, and on doubles that work late.
#include "tests/testing/device_double.h"
#include "tests/testing/suite_devices.h"

namespace ditserve {

std::unique_ptr<FakeDevice> MakeSuiteDevice(bool in_host_memory) {
  return std::make_unique<FakeDevice>(in_host_memory);
}

LateDevices::LateDevices(uint32_t seed) : machine_(std::make_shared<LateMachine>(seed)) {}

std::unique_ptr<FakeDevice> LateDevices::Make(Memory memory) {
  return std::make_unique<DeviceDouble>(machine_.get(), memory);
}

}  // namespace ditserve
