#ifndef DITSERVE_CORE_RESIDENCY_POLICY_JOIN_POLICY_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_JOIN_POLICY_H_

#include <cstdint>

#include "absl/time/time.h"

namespace ditserve {

// When a request that finds others under way begins: at once, after the sweep before it, or as is cheaper.
enum class JoinPolicy : uint8_t { kAuto, kImmediate, kWait };

// What is known when a request arrives while others ride.
struct JoinSituation {
  absl::Duration move_passed;     // Moving what those under way have passed and is no longer there.
  absl::Duration move_ahead;      // Moving what they all still need.
  absl::Duration compute_others;  // What those under way still have to compute.
  absl::Duration compute_own;     // What the new request has to compute.
};

// Predicted costs: the sum of the times until those under way, and the new request, are done.
struct JoinCosts {
  absl::Duration immediate;
  absl::Duration wait;
};

// If the new request begins at once, it moves what was passed, catches up, and both live off the same copies from
// there on; they share the processor fairly. If it waits, it moves everything again, and computes alone.
JoinCosts PredictJoinCosts(const JoinSituation& situation);

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_JOIN_POLICY_H_
