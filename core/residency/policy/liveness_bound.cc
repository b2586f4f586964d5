#include "core/residency/policy/liveness_bound.h"

namespace ditserve {

// Of all claims that waited for `ageing` the oldest is served, and a younger one never becomes older: so at most one
// claim of each other rider, and of the head of admission, is before it. While one is served,
// - the loads under way end, and one read that begins as the first of them ends: 2 transfers;
// - the copies that are doomed get no new lease but of whom they are promised to, and the executor takes a lease that
//   is `ageing` old before all younger ones: so they end after ageing + claims * operation;
// - what was given back to the system is gone: free;
// - its load finds a slot, since no other begins before it, and what it is made from is there: 2 transfers.
// Then its turn is over: its load is under way, and takes one more transfer. By the floor of the budget its module fits
// once all that is gone. Where the system refuses memory, nobody takes fresh memory until all copies have gone into the
// cache: one more turn; then it is refused at most kMostRefusals times: a pause, a transfer and a turn each.
absl::Duration LivenessBound(const PolicyOptions& options, const LivenessConditions& conditions) {
  const int64_t claims = conditions.admitted + 1;
  absl::Duration turn = 4 * conditions.transfer + conditions.free + options.ageing + claims * conditions.operation;
  if (conditions.refuses) turn = (kMostRefusals + 2) * (turn + conditions.transfer + options.growth_pause);
  return options.ageing + claims * turn + conditions.transfer;
}

// What a rider waited in a lap counts for all of it: so it ages once.
absl::Duration LapBound(const PolicyOptions& options, const LivenessConditions& conditions, int modules) {
  const absl::Duration computing = options.ageing + (conditions.admitted + 1) * conditions.operation;
  return options.ageing + modules * (LivenessBound(options, conditions) - options.ageing + computing);
}

// Of each moment either the executor computes, which it does for no more than all operations together, or it idles.
// Then nobody has a lease, and somebody waits for a module, or the head of admission for what comes free by itself:
// whoever waits for a sweep waits for a rider. That one has not waited for `ageing` yet in its lap, or it or an older
// one is being served: a turn, without what it has of leases; or its load is under way.
absl::Duration AnswersBound(const PolicyOptions& options, const LivenessConditions& conditions, int64_t requests,
                            int modules) {
  absl::Duration turn = 4 * conditions.transfer + conditions.free;
  if (conditions.refuses) turn = (kMostRefusals + 2) * (turn + conditions.transfer + options.growth_pause);
  const int claims = modules + 1;  // And admission.
  return requests * (options.ageing + claims * (turn + conditions.transfer + conditions.operation));
}

}  // namespace ditserve
