#ifndef DITSERVE_CORE_RESIDENCY_POLICY_POLICY_STATE_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_POLICY_STATE_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/time/time.h"
#include "core/base/memory.h"
#include "core/placement/route.h"
#include "core/residency/policy/budgets.h"
#include "core/residency/policy/copy_store.h"
#include "core/residency/policy/estimates.h"
#include "core/residency/policy/policy_options.h"
#include "core/residency/policy/sweeps.h"

namespace ditserve {

// What the oldest of those who waited too long is about to get: nobody else takes of it.
struct ElderShare {
  const PolicyRider* rider = nullptr;
  int64_t bytes = 0;
  bool drains = false;  // It was refused memory: nobody takes fresh memory before all copies are gone.
};

// What is under way on a device, and who waits for it.
struct DeviceState {
  Memory memory = Memory::kDevice;
  bool in_host_memory = false;  // Operations read host copies in place.
  int loads = 0;
  Estimates estimates;
  ElderShare elder;
  int64_t elder_turns = 0;            // How often that changed.
  const PolicyRider* head = nullptr;  // Of admission, while it would fit.
  absl::Duration head_since;
  PolicyRider* asks = nullptr;               // To be admitted, until that is tried in its turn.
  int64_t head_bytes = 0;                    // That it waits for: others do not load ahead into them.
  int64_t head_host_bytes = 0;               // Likewise, of the host's memory: no copies are made in them.
  const PolicyRider* planned_for = nullptr;  // Who was not admitted yet when what stays was last decided.
  int64_t widest_bytes = 0;                  // Of the modules of those who rode then.
};

// What the parts of the policy share: what is where, who rides, what memory there is, and what time it is.
struct PolicyState {
  PolicyOptions options;
  std::function<bool(FormId, FormId)> leads;  // Whether values of the second form can be made from those of the first.
  absl::Duration now;                         // Of the event that is told.
  std::vector<DeviceState> devices;
  std::vector<MemoryBudget> budgets;  // By Index(Memory).
  CopyStore copies;
  Sweeps sweeps{copies};
  std::vector<std::vector<int64_t>> stored_bytes;  // By weights and module.

  DeviceState& device(Memory memory) { return devices[Index(memory) - 1]; }
  const DeviceState& device(Memory memory) const { return devices[Index(memory) - 1]; }
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_POLICY_STATE_H_
