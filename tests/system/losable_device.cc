// A device module whose device computes on the CPU, and is lost once the file that LOSES_DEVICE names is there.
#include <unistd.h>

#include <cstdlib>

#include "core/devices/cpu_device.h"
#include "core/devices/device_module.h"
#include "tests/testing/forwarding_device.h"

namespace ditserve {
namespace {

class LosableDevice final : public ForwardingDevice {
 public:
  LosableDevice() : ForwardingDevice(MakeCpuDevice(CpuBFloat16::kFloat32)) {}
  bool computes_in_host_memory() const override { return false; }
  absl::Status Health() override {
    const char* const file = std::getenv("LOSES_DEVICE");
    if (file == nullptr || access(file, F_OK) != 0) return absl::OkStatus();
    return absl::UnavailableError("cuda:0 is lost: it fell from the bus");
  }
  // As one that does not answer: for ever.
  void Decommit(Memory memory, std::byte* begin, int64_t bytes) override {
    while (!Health().ok()) pause();
    ForwardingDevice::Decommit(memory, begin, bytes);
  }
};

}  // namespace
}  // namespace ditserve

extern "C" ditserve::Device* DitserveMakeDevice(int, ditserve::Memory, std::string*) {
  return new ditserve::LosableDevice();
}
