// A device module whose device computes on the CPU, is lost once the file that LOSES_DEVICE names is there, hangs once
// that which HANGS_DEVICE names is, and returns from no call once that which BLOCKS_DEVICE names is.
#include <unistd.h>

#include <cstdlib>
#include <memory>

#include "core/base/status_macros.h"
#include "core/devices/cpu_device.h"
#include "core/devices/device_module.h"
#include "tests/testing/forwarding_device.h"

namespace ditserve {
namespace {

bool IsThere(const char* variable) {
  const char* const file = std::getenv(variable);
  return file != nullptr && access(file, F_OK) == 0;
}

void Enter() {
  while (IsThere("BLOCKS_DEVICE")) pause();
}

class NeverPasses final : public Event {
 public:
  bool Done() override { return false; }
  absl::Status Wait() override {
    for (;;) pause();
  }
};

class LosableDevice final : public ForwardingDevice {
 public:
  LosableDevice() : ForwardingDevice(MakeCpuDevice(CpuBFloat16::kFloat32)) {}
  bool computes_in_host_memory() const override { return false; }
  absl::Status Health() override {
    Enter();
    return IsThere("LOSES_DEVICE") ? absl::UnavailableError("cuda:0 is lost: it fell from the bus") : absl::OkStatus();
  }
  absl::StatusOr<EventPtr> RecordOperations() override {
    Enter();
    if (IsThere("HANGS_DEVICE")) return std::make_shared<NeverPasses>();
    return ForwardingDevice::RecordOperations();
  }
  absl::StatusOr<Events> Mark() override {
    DITSERVE_ASSIGN_OR_RETURN(EventPtr operations, RecordOperations());
    return Events{std::move(operations)};
  }
  absl::StatusOr<EventPtr> MarkOperations() override {
    Enter();
    return ForwardingDevice::MarkOperations();
  }
  absl::StatusOr<MemoryStatus> MemoryStatusOf(Memory memory) const override {
    Enter();
    return ForwardingDevice::MemoryStatusOf(memory);
  }
  // As one that does not answer: for ever.
  void Decommit(Memory memory, std::byte* begin, int64_t bytes) override {
    while (!Health().ok()) pause();
    ForwardingDevice::Decommit(memory, begin, bytes);
  }
};

}  // namespace
}  // namespace ditserve

extern "C" bool DitserveDescribeCuda(ditserve::CudaDescription* description, std::string*) {
  *description = {13000, 13000, {{"NVIDIA H200", 90, 132, int64_t{141} << 30}}};
  return true;
}

extern "C" ditserve::Device* DitserveMakeDevice(int, ditserve::Memory, std::string*) {
  return new ditserve::LosableDevice();
}
