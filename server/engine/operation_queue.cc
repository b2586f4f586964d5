#include "server/engine/operation_queue.h"

#include <algorithm>
#include <utility>

#include "core/base/status_macros.h"

namespace ditserve {

absl::StatusOr<absl::Duration> TimeBetween(const Mark& earlier, const Mark& later) {
  if (earlier.event == nullptr || later.event == nullptr) return later.at - earlier.at;
  return later.event->TimeSince(*earlier.event);
}

absl::StatusOr<Mark> OperationQueue::SetMark() {
  DITSERVE_ASSIGN_OR_RETURN(EventPtr event, device_->MarkOperations());
  const absl::Duration held_up = held_up_ ? held_up_() : absl::ZeroDuration();
  last_ = {std::move(event), clock_->Now(), last_.number + 1, held_up};
  return last_;
}

void OperationQueue::EndModule() {
  if (last_.event == nullptr) return;
  {
    const absl::MutexLock lock(&mutex_);
    if (++modules_behind_ == kMostModulesBehind) executor_->HoldBack(true);
  }
  // Whatever is wrong with the device is told to who waits for a result.
  completions_.When({last_.event}, [this, number = last_.number](const absl::Status&) { Passed(number); });
}

void OperationQueue::Passed(int64_t number) {
  const absl::MutexLock lock(&mutex_);
  passed_ = std::max(passed_, number);
  if (modules_behind_-- == kMostModulesBehind) executor_->HoldBack(false);
}

bool OperationQueue::HasPassed(const Mark& mark) const {
  const absl::MutexLock lock(&mutex_);
  return mark.event == nullptr || mark.number <= passed_;
}

}  // namespace ditserve
