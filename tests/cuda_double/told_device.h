#ifndef DITSERVE_TESTS_CUDA_DOUBLE_TOLD_DEVICE_H_
#define DITSERVE_TESTS_CUDA_DOUBLE_TOLD_DEVICE_H_

#include "tests/cuda_double/cuda_double.h"
#include "tests/testing/forwarding_device.h"

namespace ditserve {

// The CUDA device, on the double of its runtime, which is told what the host does: it can't see that.
class ToldDevice final : public ForwardingDevice {
 public:
  using ForwardingDevice::ForwardingDevice;

  absl::StatusOr<EventPtr> Enqueue(const Conversion& conversion, absl::Span<const EventPtr> after) override {
    absl::StatusOr<EventPtr> event = ForwardingDevice::Enqueue(conversion, after);
    const auto& [source, through, target, count] = conversion;
    if (count > 0 && IsHost(source.memory) && IsHost(target.memory)) {
      cuda_double::Machine().HostReads(source.data, count * SizeOf(source.dtype), "a conversion on the host");
      cuda_double::Machine().HostWrites(target.data, count * SizeOf(target.dtype), "a conversion on the host");
    }
    return event;
  }
  // What the host has just written.
  absl::Status Operate(const Conversion& conversion) override {
    const auto& [source, through, target, count] = conversion;
    if (IsHost(source.memory)) {
      cuda_double::Machine().HostWrites(source.data, count * SizeOf(source.dtype), "an input");
    }
    return ForwardingDevice::Operate(conversion);
  }
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_CUDA_DOUBLE_TOLD_DEVICE_H_
