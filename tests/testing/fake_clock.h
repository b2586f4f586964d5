#ifndef DITSERVE_TESTS_TESTING_FAKE_CLOCK_H_
#define DITSERVE_TESTS_TESTING_FAKE_CLOCK_H_

#include <atomic>

#include "core/base/clock.h"

namespace ditserve {

// A clock that stands still until it is moved.
class FakeClock final : public Clock {
 public:
  absl::Duration Now() const override { return absl::Nanoseconds(nanoseconds_.load()); }
  void Advance(absl::Duration by) { nanoseconds_ += absl::ToInt64Nanoseconds(by); }

 private:
  std::atomic<int64_t> nanoseconds_ = 0;
};

// The machine's clock, and what a test adds to it.
class MovedClock final : public Clock {
 public:
  absl::Duration Now() const override {
    added_ += each_look_;
    return steady_.Now() + absl::Nanoseconds(added_.load());
  }
  void Advance(absl::Duration by) { added_ += absl::ToInt64Nanoseconds(by); }
  // So much passes from one look at it to the next, as on a machine that is busy with other things.
  void PassAtEachLook(absl::Duration by) { each_look_ = absl::ToInt64Nanoseconds(by); }

 private:
  const SteadyClock steady_ = {};
  mutable std::atomic<int64_t> added_ = 0;
  std::atomic<int64_t> each_look_ = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_FAKE_CLOCK_H_
