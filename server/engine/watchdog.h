#ifndef DITSERVE_SERVER_ENGINE_WATCHDOG_H_
#define DITSERVE_SERVER_ENGINE_WATCHDOG_H_

#include <deque>
#include <map>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/devices/device.h"

namespace ditserve {

// How long a device may take for what it was given. It is told of passes, and of marks: points behind everything that
// the device had been given when they were set, one at a time. A mark that does not pass is overdue after 20 times what
// the passes under way are predicted to take, and 10 s at least. What they take follows from what passes took before,
// the slowest of the latest counts; until there is one, from a speed that every GPU has.
//
// Time passes in looks: however long it is until the next one, it counts for a second at most, as long as a stopped
// process does not look.
//
// Thread safety: thread-compatible. Pure.
class ProgressDeadline {
 public:
  static constexpr absl::Duration kLeast = absl::Seconds(10);
  static constexpr int kFactor = 20;
  static constexpr absl::Duration kMostALook = absl::Seconds(1);
  static constexpr double kAssumedPerSecond = 2.5e12;  // Multiply-adds.
  static constexpr size_t kRemembered = 8;             // Passes.

  using PassId = const void*;
  // A pass begins; `work`: as the sum of QwenImageDiT::WorkOf.
  void Began(PassId pass, double work, absl::Duration now);
  // It has ended: with its output, or in some other way, so that the device may still have some of it. One that never
  // began is none.
  void Ended(PassId pass, bool has_output, absl::Duration now);
  bool HasPasses() const { return !passes_.empty(); }

  void Marked();
  void Passed();

  void Look(absl::Duration now);
  // Whether the mark should have passed long ago, and somebody waits for the device.
  bool IsOverdue() const { return HasPasses() && age_ > Allowed(); }
  absl::Duration age() const { return age_; }  // Of the mark that has not passed.
  absl::Duration Allowed() const;

 private:
  struct Pass {
    double work;
    absl::Duration began;
  };

  double SecondsPerWork() const;

  std::map<PassId, Pass> passes_;
  std::deque<double> seconds_per_work_;  // Of the latest passes.
  double left_work_ = 0;                 // Of passes that ended without an output since the mark was set.
  double marked_work_ = 0;               // Of such before.
  bool is_marked_ = false;
  absl::Duration age_;
  absl::Duration looked_;
};

// Watches whether a device gets on with what it was given: a kernel that hangs is an event that never passes, and
// nothing that CUDA tells. Waiting for a disk, a client or the processor is none of it.
//
// Thread safety: thread-safe; Check is called by one thread. Ownership: the device must outlive it.
class Watchdog {
 public:
  explicit Watchdog(Device* device) : device_(*device) {}

  // As ProgressDeadline's.
  void Began(ProgressDeadline::PassId pass, double work, absl::Duration now) ABSL_LOCKS_EXCLUDED(mutex_);
  void Ended(ProgressDeadline::PassId pass, bool has_output, absl::Duration now) ABSL_LOCKS_EXCLUDED(mutex_);

  // To be called a few times a second; waits for nothing. Unavailable, and why, if the device does not get on.
  absl::Status Check(absl::Duration now) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  Device& device_;
  Events mark_;  // Of copies and of operations. Check's alone.
  absl::Mutex mutex_;
  ProgressDeadline deadline_ ABSL_GUARDED_BY(mutex_);
};

// How long a device may take to answer what it is asked: a call may never return where another thread is in one of a
// device that hangs. Time passes in looks, as ProgressDeadline's.
//
// Thread safety: thread-safe; one thread asks, and Look is called by another, which asks no device. Pure.
class AnswerDeadline {
 public:
  static constexpr absl::Duration kMost = absl::Seconds(10);
  // While the server begins: a driver that loads or compiles kernels for the first time may answer nobody meanwhile.
  static constexpr absl::Duration kMostAtStart = absl::Seconds(60);

  // `device` is asked, and must outlive it. Begins anew where another was.
  void Asked(const Device& device) ABSL_LOCKS_EXCLUDED(mutex_);
  void Answered() ABSL_LOCKS_EXCLUDED(mutex_);

  // The start is over.
  void Begun() ABSL_LOCKS_EXCLUDED(mutex_);

  // Unavailable, and why, if it should have answered long ago.
  absl::Status Look(absl::Duration now) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Mutex mutex_;
  absl::Duration most_ ABSL_GUARDED_BY(mutex_) = kMostAtStart;
  const Device* asked_ ABSL_GUARDED_BY(mutex_) = nullptr;
  absl::Duration age_ ABSL_GUARDED_BY(mutex_);  // Of the question.
  absl::Duration looked_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_WATCHDOG_H_
