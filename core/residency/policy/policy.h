#ifndef DITSERVE_CORE_RESIDENCY_POLICY_POLICY_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_POLICY_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/base/memory.h"
#include "core/placement/route.h"
#include "core/residency/policy/actions.h"
#include "core/residency/policy/admission.h"
#include "core/residency/policy/budgets.h"
#include "core/residency/policy/copy_store.h"
#include "core/residency/policy/elder.h"
#include "core/residency/policy/estimates.h"
#include "core/residency/policy/idle.h"
#include "core/residency/policy/loads.h"
#include "core/residency/policy/outlook.h"
#include "core/residency/policy/policy_options.h"
#include "core/residency/policy/policy_state.h"
#include "core/residency/policy/room.h"
#include "core/residency/policy/sweeps.h"

namespace ditserve {

// Decides which copies of which weights are where, who may ride, and what is loaded next. Every event leads to a list
// of actions, and nothing else happens: no thread, file, clock or device is seen from here. The caller tells the time,
// and of each event once it has happened. What is decided is in its parts: Room, Idle, Loads, Admission and Elder, of
// which each knows those before it. docs/policy.md tells each rule and the test that shows it.
//
// What must hold: bytes never exceed what is in force; what is pinned stays; who is admitted gets on within
// LivenessBound, whatever others do.
//
// Thread safety: thread-compatible.
class Policy {
 public:
  // `leads(from, to)`: whether values of form `to` can be made from those of `from`. `fixed_bytes`, `budget_bytes`: by
  // Index(Memory), the host first, then each of `devices`.
  // `granule_bytes`, likewise: in what units memory goes back to the system; left out, in bytes.
  Policy(const PolicyOptions& options, const std::vector<PolicyDevice>& devices,
         const std::vector<int64_t>& fixed_bytes, const std::vector<int64_t>& budget_bytes,
         std::function<bool(FormId, FormId)> leads, const std::vector<int64_t>& granule_bytes = {});
  // A trial: what would `other` decide if its riders had left and its loads were over? It has what that one has, and
  // what happens to it does not touch that one.
  Policy(const Policy& other, std::function<bool(FormId, FormId)> leads);
  // Its parts refer to each other.
  Policy(const Policy&) = delete;
  Policy& operator=(const Policy&) = delete;

  // `stored_bytes`: of each module.
  WeightsId AddWeights(std::vector<int64_t> stored_bytes);
  // All copies go. Nobody may ride or have a load under way with them.
  void RemoveWeights(WeightsId weights, absl::Duration now, Actions& actions);

  struct JoinRequest {
    WeightsId weights = -1;
    Memory device = Memory::kDevice;
    std::vector<Route> routes;
    std::optional<int64_t> limit_bytes;
    int64_t activation_bytes = 0;
    Priority priority = Priority::kInteractive;
    JoinPolicy join = JoinPolicy::kAuto;
    int64_t host_bytes = 0;  // Of the host's memory, beside the activations in the device's own.
  };
  // --- events; each with the time at which it is told
  // The rider stays until Leave. Errors: FailedPrecondition, with a ShortageOf, if it can never fit, saying what would;
  // ResourceExhausted, with a RetryAfterOf, if too many wait.
  absl::StatusOr<PolicyRider*> Join(JoinRequest request, absl::Duration now, Actions& actions);
  // A rider who is this one's next lap, on such routes through the same weights on the same device: it is there for
  // loads and plans at once, waits for nobody to be admitted, and begins when this one has passed its last module.
  // `undecided`: of its modules the first that it may pass over. Errors: why this one ends.
  absl::StatusOr<PolicyRider*> JoinLap(PolicyRider& before, std::vector<Route> routes,
                                       std::optional<ModuleIndex> undecided, absl::Duration now, Actions& actions);
  // The rider wants its next module, or one behind that: then it passes over those between. A pin of a copy that
  // operations can read, nullopt if a Grant or End follows. Errors: why it ends, or why the module could not be loaded.
  absl::StatusOr<std::optional<Pin>> Acquire(PolicyRider& rider, ModuleIndex module, absl::Duration now,
                                             Actions& actions);
  // The rider's operation was issued, or it ends without one; it took the executor `took`.
  void Release(PolicyRider& rider, Pin pin, absl::Duration took, absl::Duration now, Actions& actions);
  void Cancel(PolicyRider& rider, const absl::Status& why, absl::Duration now, Actions& actions);
  // It holds no pin any more. `lost_bytes`: what was booked for its activations and the system did not give. `next`:
  // its next lap, which has its activations' memory from now on; then nothing was lost.
  void Leave(PolicyRider& rider, absl::Duration now, Actions& actions, int64_t lost_bytes = 0,
             PolicyRider* next = nullptr);
  // Instead of its first Acquire, of a rider that was not told to end: the system gave no memory for its activations.
  // It waits for admission again, and what could make room does; where nothing is left that could, it ends with `why`.
  void Refused(PolicyRider& rider, int64_t lost_bytes, const absl::Status& why, absl::Duration now, Actions& actions);

  // Operations may be issued that read the targets.
  void Enqueued(LoadId load, absl::Duration now, Actions& actions);
  // The targets are written and the source is not read any more; after Enqueued.
  void Finished(LoadId load, absl::Duration now, Actions& actions);
  // Instead of Enqueued; the targets' memory is theirs all the same. Who needs the module ends.
  void Failed(LoadId load, const absl::Status& why, absl::Duration now, Actions& actions);
  // Instead of Enqueued: the system gave no more of `memory`. `lost_bytes`, by Index(Memory): what was booked for the
  // targets and is not there. The module is loaded again with what is.
  void Refused(LoadId load, Memory memory, const std::vector<int64_t>& lost_bytes, const absl::Status& why,
               absl::Duration now, Actions& actions);
  void Freed(Memory memory, int64_t bytes, absl::Duration now, Actions& actions);

  void SetBudget(Memory memory, int64_t bytes, absl::Duration now, Actions& actions);
  // What other processes leave of a memory; MemoryBudget::kUnlimited if all of it.
  void SetPressure(Memory memory, int64_t bytes, absl::Duration now, Actions& actions);

  // Time passed.
  void Tick(absl::Duration now, Actions& actions);
  // When Tick has something to do next; infinite if never. It stays until that is done, also when it is past.
  absl::Duration NextTick() const { return next_tick_; }

  // --- what is known
  const MemoryBudget& budget(Memory memory) const { return state_.budgets[Index(memory)]; }
  const CopyStore& copies() const { return state_.copies; }
  const Sweeps& sweeps() const { return state_.sweeps; }
  const Estimates& estimates(Memory device) const { return state_.device(device).estimates; }
  int64_t evictions(Memory memory) const { return state_.budgets[Index(memory)].evictions; }
  int loads() const { return loads_.count(); }
  bool IsLoading(WeightsId weights) const { return loads_.Has(weights); }
  // Who gets what comes free on the device; null if nobody waited too long.
  const PolicyRider* elder(Memory device) const { return state_.device(device).elder.rider; }
  // How often that changed.
  int64_t elder_turns(Memory device) const { return state_.device(device).elder_turns; }
  // For whom a copy is loaded: those who ride, else those who begin later.
  void ForEachUser(const CopyKey& key, const std::function<void(PolicyRider&)>& visit);

  int64_t stored_bytes(WeightsId weights, ModuleIndex module) const {
    return state_.stored_bytes[static_cast<size_t>(weights)][static_cast<size_t>(module)];
  }
  int64_t AdmittedTo(Memory device) const;
  // As Admission's, of a request that takes nothing.
  absl::Duration PredictedWait(Memory device) const { return admission_.PredictedWait(state_.device(device), {}); }
  // What such a request would find if it came now.
  RideOutlook Outlook(const JoinRequest& request) const;

  // Recomputes from nothing what is kept up to date. Internal that says what differs.
  absl::Status Check() const;

 private:
  // Everything that follows from an event, until nothing more does.
  void Decide(Actions& actions);
  bool GrantPending(Actions& actions);
  // Modules before `module`, which it does not take.
  void PassOver(PolicyRider& rider, ModuleIndex module, Actions& actions);
  PolicyRider& Add(PolicyRider rider);
  // What is due by now has been done.
  absl::Duration FindNextTick() const;
  // Stored bytes of what the request needs and operations can't read yet, and of what its device moves for others
  // alone.
  int64_t MissingBytes(const JoinRequest& request) const;
  int64_t UnsharedBytes(const JoinRequest& request) const;

  PolicyState state_;
  CopyStore& copies_ = state_.copies;
  Sweeps& sweeps_ = state_.sweeps;
  Room room_{state_};
  Idle idle_{state_, room_};
  Loads loads_{state_, room_};
  Admission admission_{state_, room_, idle_};
  Elder elder_{state_, room_, admission_, loads_};
  RiderId next_rider_ = 1;
  absl::Duration next_tick_ = absl::InfiniteDuration();
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_POLICY_H_
