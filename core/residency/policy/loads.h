#ifndef DITSERVE_CORE_RESIDENCY_POLICY_LOADS_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_LOADS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "core/base/memory.h"
#include "core/residency/policy/actions.h"
#include "core/residency/policy/copy_store.h"
#include "core/residency/policy/policy_state.h"
#include "core/residency/policy/room.h"
#include "core/residency/policy/sweeps.h"

namespace ditserve {

// What is being loaded, and what is loaded next: what is missing and needed soonest, as far as there is room for it.
class Loads {
 public:
  struct Load {
    Memory device;
    RiderId rider;  // For which it was begun.
    Pin source;
    std::vector<CopyKey> targets;  // The last one is what operations read.
    int64_t bytes;                 // Of that one.
    std::vector<Pin> read = {};    // Targets on the host that the device still reads, to make the next.
  };

  Loads(PolicyState& state, Room& room);

  // Starts the load that is needed soonest; false if there is none or no room.
  bool StartNext(DeviceState& device, Actions& actions);
  bool HasSlot(const DeviceState& device) const { return device.loads < options_.max_loads; }
  // A ready copy from which the module is made soonest; null: the checkpoint. `loading`: one is on its way.
  Copy* FindSource(const Itinerary& itinerary, ModuleIndex module, bool* loading) const;
  // Loads the module into `computable`, and into stops on the way there.
  void Start(DeviceState& device, PolicyRider& rider, ModuleIndex module, Copy* source, Copy& computable,
             Actions& actions);

  const Load& at(LoadId load) const { return loads_.at(load); }
  // Operations may read what it writes.
  void SetReady(LoadId load);
  void Finish(LoadId load, Actions& actions);
  // It came to nothing: its targets go.
  void TakeBack(LoadId load, Actions& actions);

  int count() const { return static_cast<int>(loads_.size()); }
  bool Has(WeightsId weights) const;

 private:
  // A load that wants room, and how soon what it loads is needed.
  struct Claim {
    PolicyRider* rider;
    ModuleIndex module;
    double next_use;  // Predicted seconds. Only copies whose next use is farther away give way.
    bool urgent;      // The rider waits for it, and nobody behind it could use the room sooner.
  };

  // Whether all that it has yet to take is there or on its way.
  static bool HasAll(const PolicyRider& rider);
  std::optional<ModuleIndex> NextMissing(const PolicyRider& rider) const;
  Claim ClaimFor(PolicyRider& rider, ModuleIndex module);
  bool TryLoad(DeviceState& device, const Claim& claim, Actions& actions);
  void AddStops(PolicyRider& rider, ModuleIndex module, const Copy* source, std::vector<Copy*>& targets,
                Actions& actions);
  Load Remove(LoadId load);

  const PolicyOptions& options_;
  const absl::Duration& now_;
  const std::function<bool(FormId, FormId)>& leads_;
  const std::vector<std::vector<int64_t>>& stored_bytes_;
  std::vector<DeviceState>& devices_;
  std::vector<MemoryBudget>& budgets_;
  CopyStore& copies_;
  Sweeps& sweeps_;
  Room& room_;
  std::map<LoadId, Load> loads_;
  LoadId next_load_ = 1;
  std::vector<Claim> claims_;  // Scratch of StartNext.
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_LOADS_H_
