#ifndef DITSERVE_CORE_RESIDENCY_POLICY_ELDER_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_ELDER_H_

#include <vector>

#include "absl/time/time.h"
#include "core/residency/policy/actions.h"
#include "core/residency/policy/admission.h"
#include "core/residency/policy/loads.h"
#include "core/residency/policy/policy_state.h"
#include "core/residency/policy/room.h"
#include "core/residency/policy/sweeps.h"

namespace ditserve {

// The elder: whoever waited longest, and too long, gets what comes free, whoever else asks.
class Elder {
 public:
  Elder(PolicyState& state, Room& room, Admission& admission, Loads& loads);

  // Finds who is the elder of a device and does for it what can be done; false if nothing can.
  bool Serve(DeviceState& device, Actions& actions);

 private:
  bool IsAged(const PolicyRider& rider) const { return now_ - rider.since + rider.debt >= options_.ageing; }
  // The oldest claim that nothing serves yet; null if there is none. Promises copies to those that are served.
  PolicyRider* Find(DeviceState& device);
  bool LoadFor(DeviceState& device, PolicyRider& rider, Actions& actions);

  const PolicyOptions& options_;
  const absl::Duration& now_;
  std::vector<MemoryBudget>& budgets_;
  CopyStore& copies_;
  Sweeps& sweeps_;
  Room& room_;
  Admission& admission_;
  Loads& loads_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_ELDER_H_
