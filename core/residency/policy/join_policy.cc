#include "core/residency/policy/join_policy.h"

#include <algorithm>

namespace ditserve {

JoinCosts PredictJoinCosts(const JoinSituation& situation) {
  const absl::Duration move_all = situation.move_passed + situation.move_ahead;
  const absl::Duration shared_compute = std::min(situation.compute_others, situation.compute_own);
  JoinCosts costs;
  costs.immediate = std::max(move_all, situation.compute_others + shared_compute) +
                    std::max(move_all, situation.compute_own + shared_compute);
  const absl::Duration others_done = std::max(situation.move_ahead, situation.compute_others);
  costs.wait = others_done + others_done + std::max(move_all, situation.compute_own);
  return costs;
}

}  // namespace ditserve
