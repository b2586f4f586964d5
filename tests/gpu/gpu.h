#ifndef DITSERVE_TESTS_GPU_GPU_H_
#define DITSERVE_TESTS_GPU_GPU_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/devices/device.h"

namespace ditserve {

// What the tests of a GPU run on. A program is linked with one kind: the machine's first GPU, by the device module that
// servers load (tests/gpu/real_gpu.cc), or the CUDA device on a double of its runtime (tests/gpu/double_gpu.cc), by
// which the tests themselves are tested.

// Its name. NotFound, and why, where there is none: of a driver that is there and does not work the error is another.
absl::StatusOr<std::string> FindGpu();

// Around each test. The last thing is a look at what was left behind, where that can be seen.
class GpuScope {
 public:
  GpuScope();
  ~GpuScope();
};

// Throws, which ends the test, if there is none.
std::unique_ptr<Device> OpenGpu();

// Somebody else, who has all that is free of the GPU's memory but for so many bytes, as long as it lives.
class CoTenant {
 public:
  explicit CoTenant(int64_t left_bytes);
  ~CoTenant();
  CoTenant(const CoTenant&) = delete;
  CoTenant& operator=(const CoTenant&) = delete;

 private:
  struct Holder;
  std::unique_ptr<Holder> holder_;
};

// Has the device reach for an address that has no memory: it is lost with the process' context.
void ReachForNoMemory(Device& device);

// What a program started as a co-tenant does, in its own process, whose context takes its part: takes memory but for so
// many bytes, says so, and gives it back when its standard input ends. The exit code.
int HoldMemory(int64_t left_bytes);

}  // namespace ditserve

#endif  // DITSERVE_TESTS_GPU_GPU_H_
