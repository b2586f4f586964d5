#include "core/join_policy.h"

#include <algorithm>

namespace ditserve {

JoinCosts PredictJoinCosts(const JoinSituation& at) {
  const absl::Duration move_all = at.move_passed + at.move_ahead;
  const absl::Duration shared_compute = std::min(at.compute_others, at.compute_own);
  JoinCosts costs;
  costs.immediate =
      std::max(move_all, at.compute_others + shared_compute) + std::max(move_all, at.compute_own + shared_compute);
  const absl::Duration others_done = std::max(at.move_ahead, at.compute_others);
  costs.wait = others_done + others_done + std::max(move_all, at.compute_own);
  return costs;
}

}  // namespace ditserve
