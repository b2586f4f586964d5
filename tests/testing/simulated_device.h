#ifndef DITSERVE_TESTS_TESTING_SIMULATED_DEVICE_H_
#define DITSERVE_TESTS_TESTING_SIMULATED_DEVICE_H_

#include <algorithm>
#include <memory>
#include <random>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/testing/fake_device.h"

namespace ditserve {

// A device with memory of its own behind a link of a given speed, whose operations complete late and out of order. Time
// is real: what is measured with it is what a caller would see.
class SimulatedDevice final : public FakeDevice {
 public:
  struct Options {
    double link_bytes_per_second = 1e12;
    absl::Duration most_lateness;  // Of an operation's completion.
  };

  explicit SimulatedDevice(const Options& options) : options_(options) {}

  absl::StatusOr<EventPtr> Enqueue(const Conversion& conversion, absl::Span<const EventPtr> after) override {
    const auto& [source, through, target, count] = conversion;
    if (source.memory != target.memory) absl::SleepFor(TimeOnLink(count * SizeOf(source.dtype)));
    return FakeDevice::Enqueue(conversion, after);
  }

  absl::StatusOr<EventPtr> RecordOperations() override {
    if (options_.most_lateness == absl::ZeroDuration()) return nullptr;
    absl::MutexLock lock(&mutex_);
    const double share = std::uniform_real_distribution<double>(0, 1)(random_);
    return std::make_shared<LateEvent>(absl::Now() + options_.most_lateness * share);
  }

 private:
  class LateEvent final : public Event {
   public:
    explicit LateEvent(absl::Time at) : at_(at) {}
    bool Done() override { return absl::Now() >= at_; }
    absl::Status Wait() override {
      absl::SleepFor(at_ - absl::Now());
      return absl::OkStatus();
    }

   private:
    const absl::Time at_;
  };

  // Until the link, which carries one copy after the other, has carried these bytes.
  absl::Duration TimeOnLink(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    const absl::Time now = absl::Now();
    link_free_ = std::max(link_free_, now) + absl::Seconds(static_cast<double>(bytes) / options_.link_bytes_per_second);
    return link_free_ - now;
  }

  const Options options_;
  absl::Mutex mutex_;
  absl::Time link_free_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  std::mt19937 random_ ABSL_GUARDED_BY(mutex_){7};
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_SIMULATED_DEVICE_H_
