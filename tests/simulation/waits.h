#ifndef DITSERVE_TESTS_SIMULATION_WAITS_H_
#define DITSERVE_TESTS_SIMULATION_WAITS_H_

#include <cstdint>
#include <map>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "core/residency/policy/liveness_bound.h"
#include "core/residency/policy/policy.h"
#include "tests/simulation/queue.h"
#include "tests/simulation/scenario.h"

namespace ditserve::simulation {

// How long everybody waits, against what the policy promises: for a module, for admission, for a lap, until all are
// answered, and how long a budget stays exceeded. Nothing is looked at while something goes wrong.
//
// Errors: Internal that says who waits, how long, and what the bound is.
class Waits {
 public:
  Waits(const Scenario& scenario, const Policy& policy, const Queue& queue)
      : scenario_(scenario),
        policy_(policy),
        queue_(queue),
        heads_(scenario.devices.size()),
        over_(scenario.budget_bytes.size()) {}

  // To be called after each step in which nothing goes wrong any more.
  absl::Status Check(absl::Duration now);
  // Something went wrong once more: every wait counts from here.
  void Restart();
  // One more is to be answered, or not all can be, as things are: until all are counts from here.
  void RestartAnswers() { answers_ = {}; }
  // It was the head until then, if only for a moment: who is the head now is so from here.
  void Admitted(const PolicyRider& rider) { heads_[static_cast<size_t>(DeviceOf(rider.itinerary->device))] = {}; }
  // The rider asked for its next module, and maybe got it; it was granted it later.
  void Acquired(const PolicyRider& rider, absl::Duration now);
  void Granted(const PolicyRider& rider, absl::Duration now);
  // Whoever waited too long, and for whom nothing is on its way, is served, the oldest first.
  absl::Status CheckElders(absl::Duration now) const;
  void Forget(RiderId rider) { waiting_.erase(rider), laps_.erase(rider), waited_.erase(rider); }
  // The longest wait as a share of its bound.
  double worst() const { return worst_; }

 private:
  // Something that is so since then, and the most that it may last: the bound grows with those who are admitted.
  struct Wait {
    absl::Duration since;
    absl::Duration most;
    ModuleIndex module = -1;
    RiderId rider = -1;
  };

  absl::Status CheckRider(const PolicyRider& rider, absl::Duration now);
  absl::Status CheckHead(Memory device, absl::Duration now);
  absl::Status CheckAnswers(absl::Duration now);
  absl::Status CheckBudget(Memory memory, absl::Duration now);
  absl::Status Compare(const Wait& wait, absl::Duration now, const char* what);
  LivenessConditions ConditionsOn(Memory device) const;
  absl::Duration Bound(Memory device) const;

  const Scenario& scenario_;
  const Policy& policy_;
  const Queue& queue_;
  std::map<RiderId, Wait> waiting_;
  std::map<RiderId, Wait> laps_;
  struct Waited {
    absl::Duration since;   // Of the module it waits for.
    absl::Duration before;  // For those before it in its lap.
  };
  std::map<RiderId, Waited> waited_;
  std::vector<Wait> heads_;  // By device.
  std::vector<Wait> over_;   // By Index(Memory).
  Wait answers_;
  double worst_ = 0;
};

}  // namespace ditserve::simulation

#endif  // DITSERVE_TESTS_SIMULATION_WAITS_H_
