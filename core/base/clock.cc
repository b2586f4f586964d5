#include "core/base/clock.h"

#include <chrono>

namespace ditserve {

absl::Duration SteadyClock::Now() const {
  return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

}  // namespace ditserve
