#ifndef DITSERVE_TESTS_SIMULATION_QUEUE_H_
#define DITSERVE_TESTS_SIMULATION_QUEUE_H_

#include <set>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "core/residency/policy/policy.h"
#include "tests/simulation/scenario.h"

namespace ditserve::simulation {

// Who is to be admitted next, worked out anew, and what must hold of those who wait.
//
// Errors: Internal that says which rule was broken.
class Queue {
 public:
  Queue(const Scenario& scenario, const Policy& policy) : scenario_(scenario), policy_(policy) {}

  // Whether its priority still counts: it has not waited long.
  bool IsPatient(const PolicyRider& rider, absl::Duration now) const;
  // Null if nobody waits, or the first does not fit.
  const PolicyRider* HeadThatFits(Memory device, absl::Duration now) const;
  // Nobody was overtaken, on another device nobody who stood first there and waits for the host's memory alone, and who
  // is admitted fits beside the others.
  absl::Status CheckAdmitted(const PolicyRider& rider, absl::Duration now) const;
  // The system had no memory for its activations: it waits anew, and nobody is sent away for it.
  void CameBack(const PolicyRider& rider) { came_back_.insert(rider.id); }
  // No more wait than may, and nobody waits for a sweep that is over, of other weights, or of a lower priority, or does
  // not want to wait.
  absl::Status Check(absl::Duration now);

 private:
  bool GoesBefore(const PolicyRider& a, const PolicyRider& b, absl::Duration now) const;
  // Null if nobody waits.
  const PolicyRider* Head(Memory device, absl::Duration now) const;
  bool FitsOnDevice(const PolicyRider& rider) const;
  // Its device has room for it, and pressure on the host does not keep it out.
  bool MayWaitForHost(const PolicyRider& rider) const;
  // Who is first on another device and would be let in if the host had room, and goes before the rider.
  std::vector<const PolicyRider*> WaitForHostBefore(const PolicyRider& rider, absl::Duration now) const;

  const Scenario& scenario_;
  const Policy& policy_;
  std::set<RiderId> came_back_;
  std::set<RiderId> stood_first_;  // At the last Check, each on its device, and could have waited for the host alone.
};

}  // namespace ditserve::simulation

#endif  // DITSERVE_TESTS_SIMULATION_QUEUE_H_
