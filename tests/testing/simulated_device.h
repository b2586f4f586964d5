#ifndef DITSERVE_TESTS_TESTING_SIMULATED_DEVICE_H_
#define DITSERVE_TESTS_TESTING_SIMULATED_DEVICE_H_

#include <algorithm>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/testing/fake_device.h"

namespace ditserve {

// A device with memory of its own behind a link of a given speed. Time is real: what is measured with it is what a
// caller would see.
class SimulatedDevice final : public FakeDevice {
 public:
  explicit SimulatedDevice(double link_bytes_per_second) : link_bytes_per_second_(link_bytes_per_second) {}

  absl::StatusOr<EventPtr> Enqueue(const Conversion& conversion, absl::Span<const EventPtr> after) override {
    const auto& [source, through, target, count] = conversion;
    if (source.memory != target.memory) absl::SleepFor(TimeOnLink(count * SizeOf(source.dtype)));
    return FakeDevice::Enqueue(conversion, after);
  }

 private:
  // Until the link, which carries one copy after the other, has carried these bytes.
  absl::Duration TimeOnLink(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    const absl::Time now = absl::Now();
    link_free_ = std::max(link_free_, now) + absl::Seconds(static_cast<double>(bytes) / link_bytes_per_second_);
    return link_free_ - now;
  }

  const double link_bytes_per_second_;
  absl::Mutex mutex_;
  absl::Time link_free_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_SIMULATED_DEVICE_H_
