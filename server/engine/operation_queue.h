#ifndef DITSERVE_SERVER_ENGINE_OPERATION_QUEUE_H_
#define DITSERVE_SERVER_ENGINE_OPERATION_QUEUE_H_

#include <cstdint>
#include <functional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/base/clock.h"
#include "core/base/executor.h"
#include "core/devices/completions.h"
#include "core/devices/device.h"

namespace ditserve {

// A point between operations of a device.
struct Mark {
  EventPtr event;     // Null: the device was there when it was set.
  absl::Duration at;  // When it was set.
  int64_t number = 0;
  absl::Duration held_up;  // For how long all operations would have been until then, had there always been some.
};

// From one mark until a later one, both of which have passed.
absl::StatusOr<absl::Duration> TimeBetween(const Mark& earlier, const Mark& later);

// What an executor has issued to its device: marks in it, and how many modules the device is behind. The executor is
// held back while that is as many as it may be, so that a pass that is cancelled ends soon, whose turn it is is decided
// when it is computed, and memory that operations read comes free soon after it was given up.
//
// Thread safety: thread-compatible; called on the executor. Ownership: arguments must outlive it. Destroying it waits
// for the device.
class OperationQueue {
 public:
  // Enough that the device has work while the executor is woken and issues more, which takes well under a millisecond:
  // the modules of a small image take it less than a tenth of one each. Few enough that it is through with them in some
  // ten milliseconds where weights stream at the speed of a link.
  static constexpr int kMostModulesBehind = 16;

  // `held_up`: as a mark has it, by what else is done with the processors of operations; null: they have their own.
  OperationQueue(Device* device, Executor* executor, const Clock* clock,
                 std::function<absl::Duration()> held_up = nullptr)
      : device_(device), executor_(executor), clock_(clock), held_up_(std::move(held_up)) {}

  // Behind all operations issued so far. Errors: the device's.
  absl::StatusOr<Mark> SetMark();
  // The last one.
  const Mark& last() const { return last_; }

  // The operations of a module end at the last mark.
  void EndModule() ABSL_LOCKS_EXCLUDED(mutex_);

  // Whether the device is known to have passed it. Asks it nothing.
  bool HasPassed(const Mark& mark) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Passed(int64_t number) ABSL_LOCKS_EXCLUDED(mutex_);

  Device* const device_;
  Executor* const executor_;
  const Clock* const clock_;
  const std::function<absl::Duration()> held_up_;
  Mark last_;
  mutable absl::Mutex mutex_;
  int modules_behind_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t passed_ ABSL_GUARDED_BY(mutex_) = 0;  // The last mark that a module ended at.
  Completions completions_;                     // The first to go: it calls.
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_OPERATION_QUEUE_H_
