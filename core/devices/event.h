#ifndef DITSERVE_CORE_DEVICES_EVENT_H_
#define DITSERVE_CORE_DEVICES_EVENT_H_

#include <algorithm>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace ditserve {

// A point in a device's work.
//
// Thread safety: thread-safe.
class Event {
 public:
  virtual ~Event() = default;

  // Whether the work up to it is finished. Never blocks. Once the device is lost it is true: nothing is under way.
  virtual bool Done() = 0;

  // Blocks until the work up to it is finished: for transfer threads, and to shut down.
  // Errors: those of the work, which the device has met since.
  virtual absl::Status Wait() = 0;

  // How much later than `earlier` the device came to it. Both are of Device::MarkOperations, and have passed.
  virtual absl::StatusOr<absl::Duration> TimeSince(const Event& /*earlier*/) {
    return absl::InternalError("an event that knows no time was asked for it");
  }
};

// Null has passed.
using EventPtr = std::shared_ptr<Event>;
using Events = std::vector<EventPtr>;

inline bool AllDone(absl::Span<const EventPtr> events) {
  return std::all_of(events.begin(), events.end(), [](const EventPtr& event) { return !event || event->Done(); });
}

// Waits for each, and returns the first error.
inline absl::Status WaitForAll(absl::Span<const EventPtr> events) {
  absl::Status status;
  for (const EventPtr& event : events) {
    if (event != nullptr) status.Update(event->Wait());
  }
  return status;
}

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_EVENT_H_
