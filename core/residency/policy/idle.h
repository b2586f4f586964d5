#ifndef DITSERVE_CORE_RESIDENCY_POLICY_IDLE_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_IDLE_H_

#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "core/residency/policy/actions.h"
#include "core/residency/policy/policy_state.h"
#include "core/residency/policy/room.h"

namespace ditserve {

// What stays when riders leave: a while all that they kept, then what rests where their profiles say.
class Idle {
 public:
  Idle(PolicyState& state, Room& room);

  // Copies that `left` kept are idle from now on.
  void Mark(const PolicyRider& left, Actions& actions);
  // Somebody is admitted.
  void Ends() { since_.reset(); }
  // Nobody is there any more.
  void Begins() { since_ = now_; }

  // Lets copies go that were idle for long.
  void ReleaseCopies(Actions& actions);
  // What is in no copy goes back to the system, once nobody rode for long.
  void Trim(Actions& actions);
  // When they have something to do; infinite if never.
  absl::Duration copies_due() const { return next_; }
  absl::Duration trim_due() const { return since_ ? *since_ + options_.idle_release : absl::InfiniteDuration(); }

 private:
  const PolicyOptions& options_;
  const absl::Duration& now_;
  std::vector<MemoryBudget>& budgets_;
  CopyStore& copies_;
  Room& room_;
  absl::Duration next_ = absl::InfiniteDuration();              // When a copy may have been idle for long enough.
  std::optional<absl::Duration> since_ = absl::ZeroDuration();  // When the last rider left.
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_IDLE_H_
