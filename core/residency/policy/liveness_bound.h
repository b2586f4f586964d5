#ifndef DITSERVE_CORE_RESIDENCY_POLICY_LIVENESS_BOUND_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_LIVENESS_BOUND_H_

#include <cstdint>

#include "absl/time/time.h"
#include "core/residency/policy/policy_options.h"

namespace ditserve {

// What a wait that the policy decides about depends on.
struct LivenessConditions {
  int64_t admitted = 0;     // Riders, on the device.
  absl::Duration transfer;  // The longest times that each takes.
  absl::Duration operation;
  absl::Duration free;   // Until memory is back at the system.
  bool refuses = false;  // The system gives less than the budget.
};

// The longest that a pending rider, or a head of admission that fits, waits, while budgets stay and loads succeed. The
// executor takes whoever has a copy for PolicyOptions::ageing in the order of their grants. docs/policy.md has why.
absl::Duration LivenessBound(const PolicyOptions& options, const LivenessConditions& conditions);

// The longest that a lap of so many modules takes, if each is waited for as long as LivenessBound.
absl::Duration LapBound(const PolicyOptions& options, const LivenessConditions& conditions, int modules);

// The longest until so many requests are answered, those included that wait for admission or for a sweep, while budgets
// stay, loads succeed and nobody comes. Of no more modules than that each.
absl::Duration AnswersBound(const PolicyOptions& options, const LivenessConditions& conditions, int64_t requests,
                            int modules);

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_LIVENESS_BOUND_H_
