#ifndef DITSERVE_CORE_BASE_PRIORITY_H_
#define DITSERVE_CORE_BASE_PRIORITY_H_

#include <cstdint>
#include <tuple>

#include "absl/time/time.h"

namespace ditserve {

// Who goes first where not all can.
enum class Priority : uint8_t { kInteractive, kBatch };

// How urgent a piece of work is: a smaller turn goes before a larger one, equal ones in order of arrival.
struct Turn {
  Priority priority = Priority::kInteractive;
  absl::Duration attained;  // Time that was spent on whom it is for.

  friend bool operator<(const Turn& a, const Turn& b) {
    return std::tie(a.priority, a.attained) < std::tie(b.priority, b.attained);
  }
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_PRIORITY_H_
