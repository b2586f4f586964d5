#ifndef DITSERVE_TESTS_TESTING_DEVICE_DOUBLE_H_
#define DITSERVE_TESTS_TESTING_DEVICE_DOUBLE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/testing/fake_device.h"
#include "tests/testing/late_machine.h"

namespace ditserve {

// A device with memory, streams for copies and one for computing of its own, in a late machine. Which stream a copy
// takes is random: copies are in no order but that of their events. Memory is overwritten with a pattern when it is
// given, when it is taken, and before it is written.
class DeviceDouble final : public FakeDevice {
 public:
  explicit DeviceDouble(LateMachine* machine, Memory memory = Memory::kDevice);
  // Finishes what was enqueued.
  ~DeviceDouble() override;

  void Compute(const std::string& name, const std::vector<ByteRange>& reads, Work work) override;
  LateMachine* machine() override { return &machine_; }

  absl::StatusOr<EventPtr> Enqueue(const Conversion& conversion, absl::Span<const EventPtr> after) override;
  absl::Status ComputeAfter(const EventPtr& event) override;
  absl::Status Operate(const Conversion& conversion) override;
  absl::StatusOr<EventPtr> RecordOperations() override;
  absl::Status Commit(Memory memory, std::byte* begin, int64_t bytes) override;
  void Decommit(Memory memory, std::byte* begin, int64_t bytes) override;
  absl::Status Move(Memory memory, std::byte* from, std::byte* to, int64_t bytes) override;

  static constexpr int kPattern = 0xa5;

 private:
  class PointEvent;
  // On `stream`, after events of doubles in this machine.
  EventPtr Enqueue(size_t stream, const std::string& place, absl::Span<const EventPtr> after,
                   const std::vector<LateMachine::Access>& accesses, LateMachine::Work work);

  // Of elements, on a stream.
  EventPtr EnqueueElements(size_t stream, const Conversion& conversion, absl::Span<const EventPtr> after);

  LateMachine& machine_;
  const size_t computing_;
  const std::vector<size_t> copies_;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_DEVICE_DOUBLE_H_
