#ifndef DITSERVE_CORE_RESIDENCY_POLICY_OUTLOOK_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_OUTLOOK_H_

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace ditserve {

// What a request would find on a device if it came now. Durations are predicted from what was measured there, or on
// another device while nothing was; zero while nothing was on any.
struct RideOutlook {
  absl::Status fits;       // Why it can never ride there, as Join says it.
  int requests = 0;        // That ride or wait there.
  absl::Duration wait;     // Until it is admitted.
  absl::Duration moving;   // Moving what it needs that is not there, and what others move that is of no use to it.
  absl::Duration compute;  // What it has to compute.
  // What others compute meanwhile: who is as urgent has as much of the processor as it has, who is more urgent all.
  absl::Duration compute_others;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_OUTLOOK_H_
