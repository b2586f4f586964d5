#include "tests/testing/device_double.h"

#include <cstring>
#include <memory>
#include <utility>

#include "core/base/status_macros.h"

namespace ditserve {

class DeviceDouble::PointEvent final : public Event {
 public:
  PointEvent(LateMachine* machine, LateMachine::PointPtr point) : machine_(*machine), point_(std::move(point)) {}
  bool Done() override { return machine_.IsDone(point_); }
  absl::Status Wait() override {
    machine_.WaitFor(point_);
    return absl::OkStatus();
  }
  static LateMachine::PointPtr Of(const EventPtr& event) {
    return event == nullptr ? nullptr : static_cast<const PointEvent&>(*event).point_;
  }

 private:
  LateMachine& machine_;
  const LateMachine::PointPtr point_;
};

DeviceDouble::DeviceDouble(LateMachine* machine, Memory memory)
    : FakeDevice(/*computes_in_host_memory=*/false, memory),
      machine_(*machine),
      computing_(machine->AddStream()),
      copies_({machine->AddStream(), machine->AddStream()}) {}

DeviceDouble::~DeviceDouble() {
  while (machine_.RunSome()) {
  }
}

void DeviceDouble::Compute(const std::string& name, const std::vector<ByteRange>& reads, Work work) {
  std::vector<LateMachine::Access> accesses;
  std::vector<const std::byte*> found;
  for (const auto& [begin, bytes] : reads) {
    accesses.push_back({begin, bytes, false});
    found.push_back(static_cast<const std::byte*>(begin));
  }
  machine_.Enqueue(computing_, name, {}, accesses,
                   [work = std::move(work), found = std::move(found)]() mutable { work(found); });
}

EventPtr DeviceDouble::Enqueue(size_t stream, const std::string& place, absl::Span<const EventPtr> after,
                               const std::vector<LateMachine::Access>& accesses, LateMachine::Work work) {
  std::vector<LateMachine::PointPtr> points;
  for (const EventPtr& event : after) points.push_back(PointEvent::Of(event));
  return std::make_shared<PointEvent>(&machine_, machine_.Enqueue(stream, place, points, accesses, std::move(work)));
}

absl::StatusOr<EventPtr> DeviceDouble::Enqueue(const Conversion& conversion, absl::Span<const EventPtr> after) {
  const ElementSpan source = conversion.source, target = conversion.target;
  const int64_t count = conversion.count;
  const size_t stream = copies_[machine_.Pick(copies_.size())];
  if (count == 0) return Enqueue(stream, name() + "'s event", after, {}, nullptr);
  DITSERVE_RETURN_IF_ERROR(CheckLink());
  if (!IsHost(source.memory) || !IsHost(target.memory)) return EnqueueElements(stream, conversion, after);
  DITSERVE_RETURN_IF_ERROR(WaitForAll(after));
  machine_.HostReads(source.data, count * SizeOf(source.dtype), "a conversion on the host");
  machine_.HostWrites(target.data, count * SizeOf(target.dtype), "a conversion on the host");
  Cast(source.data, source.dtype, conversion.through, target.data, target.dtype, count);
  return nullptr;
}

EventPtr DeviceDouble::EnqueueElements(size_t stream, const Conversion& conversion, absl::Span<const EventPtr> after) {
  const ElementSpan source = conversion.source, target = conversion.target;
  const int64_t count = conversion.count;
  const std::vector<DType> through(conversion.through.begin(), conversion.through.end());
  const int64_t read = count * SizeOf(source.dtype), written = count * SizeOf(target.dtype);
  const std::string place = name() + "'s conversion";
  Enqueue(stream, place, after, {{target.data, written, true}},
          [target, written] { std::memset(target.data, kPattern, static_cast<size_t>(written)); });
  return Enqueue(
      stream, place, {}, {{source.data, read, false}, {target.data, written, true}},
      [source, through, target, count] { Cast(source.data, source.dtype, through, target.data, target.dtype, count); });
}

absl::Status DeviceDouble::Operate(const Conversion& conversion) {
  DITSERVE_RETURN_IF_ERROR(CheckLink());
  EnqueueElements(computing_, conversion, {});
  return absl::OkStatus();
}

absl::Status DeviceDouble::ComputeAfter(const EventPtr& event) {
  if (event != nullptr) machine_.OrderStream(computing_, PointEvent::Of(event));
  return absl::OkStatus();
}

absl::StatusOr<EventPtr> DeviceDouble::RecordOperations() {
  return Enqueue(computing_, name() + "'s event", {}, {}, nullptr);
}

absl::Status DeviceDouble::Commit(Memory memory, std::byte* begin, int64_t bytes) {
  DITSERVE_RETURN_IF_ERROR(FakeDevice::Commit(memory, begin, bytes));
  machine_.HostWrites(begin, bytes, "Commit");
  std::memset(begin, kPattern, static_cast<size_t>(bytes));
  return absl::OkStatus();
}

// It stays accessible to work that comes too late, which has been reported then.
void DeviceDouble::Decommit(Memory memory, std::byte* begin, int64_t bytes) {
  machine_.HostTakes(begin, bytes, "Decommit");
  std::memset(begin, kPattern, static_cast<size_t>(bytes));
  Mark(memory, begin, bytes, false);
}

// As Decommit, for the same reason, and Commit.
absl::Status DeviceDouble::Move(Memory memory, std::byte* from, std::byte* to, int64_t bytes) {
  Decommit(memory, from, bytes);
  return Commit(memory, to, bytes);
}

}  // namespace ditserve
