#ifndef DITSERVE_CORE_BASE_DOORBELL_H_
#define DITSERVE_CORE_BASE_DOORBELL_H_

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "absl/time/time.h"

namespace ditserve {

// Where one thread sleeps until somebody rings, or for some time: of the monotonic clock. (A wait of absl::CondVar ends
// by the wall clock, and a step of that would make it late by as much.)
//
// Thread safety: thread-safe.
class Doorbell {
 public:
  // Ends the wait that is under way, or else the next one.
  void Ring() {
    const std::lock_guard lock(mutex_);
    rung_ = true;
    ringing_.notify_one();
  }

  void WaitFor(absl::Duration at_most) {
    constexpr absl::Duration kLongest = absl::Hours(1);  // Longer waits would overflow the clock.
    std::unique_lock lock(mutex_);
    ringing_.wait_for(lock, absl::ToChronoNanoseconds(std::min(at_most, kLongest)), [this] { return rung_; });
    rung_ = false;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ringing_;
  bool rung_ = false;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_DOORBELL_H_
