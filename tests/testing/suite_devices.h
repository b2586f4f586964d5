#ifndef DITSERVE_TESTS_TESTING_SUITE_DEVICES_H_
#define DITSERVE_TESTS_TESTING_SUITE_DEVICES_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/testing/fake_device.h"
#include "tests/testing/late_machine.h"

namespace ditserve {

// The devices that residency's tests run on. A program is linked with one kind of them: fakes and doubles
// (tests/testing/suite_doubles.cc), or the CUDA device on a double of its runtime (tests/cuda_double/suite_cuda.cc).

// For tests that are not about order. One that computes in host memory is a fake in every program.
std::unique_ptr<FakeDevice> MakeSuiteDevice(bool in_host_memory = false);

// Devices that work late, by seed, and report what nothing orders.
//
// Ownership: outlives them. One at a time. Thread safety: thread-safe.
class LateDevices {
 public:
  explicit LateDevices(uint32_t seed);

  std::unique_ptr<FakeDevice> Make(Memory memory = Memory::kDevice);

  LateMachine& machine() { return *machine_; }
  std::vector<std::string> TakeRaces() { return machine_->TakeRaces(); }

 private:
  const std::shared_ptr<LateMachine> machine_;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_SUITE_DEVICES_H_
