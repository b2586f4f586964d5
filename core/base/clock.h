#ifndef DITSERVE_CORE_BASE_CLOCK_H_
#define DITSERVE_CORE_BASE_CLOCK_H_

#include "absl/time/time.h"

namespace ditserve {

// Time since some fixed moment. Never goes back, and does not follow the wall clock. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Duration Now() const = 0;
};

// The machine's monotonic clock.
class SteadyClock final : public Clock {
 public:
  absl::Duration Now() const override;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_CLOCK_H_
