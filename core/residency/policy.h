#ifndef DITSERVE_CORE_RESIDENCY_POLICY_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_H_

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/base/memory.h"
#include "core/placement/route.h"
#include "core/residency/actions.h"
#include "core/residency/budgets.h"
#include "core/residency/copy_store.h"
#include "core/residency/estimates.h"
#include "core/residency/policy_options.h"
#include "core/residency/sweeps.h"

namespace ditserve {

// Decides which copies of which weights are where, who may ride, and what is loaded next. Every event leads to a list
// of actions, and nothing else happens: no thread, file, clock or device is seen from here. The caller tells the time,
// and of each event once it has happened. docs/policy.md tells each rule and the test that shows it.
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
  Policy(const PolicyOptions& options, std::vector<PolicyDevice> devices, std::vector<int64_t> fixed_bytes,
         std::vector<int64_t> budget_bytes, std::function<bool(FormId, FormId)> leads,
         const std::vector<int64_t>& granule_bytes = {});

  // `stored_bytes`: of each module.
  WeightsId AddWeights(std::vector<int64_t> stored_bytes);
  // All copies go. Nobody may ride or have a load under way with them.
  void RemoveWeights(WeightsId weights, Actions& actions);

  struct JoinRequest {
    WeightsId weights = -1;
    Memory device = Memory::kDevice;
    std::vector<Route> routes;
    std::optional<int64_t> limit_bytes;
    int64_t activation_bytes = 0;
    Priority priority = Priority::kInteractive;
    JoinPolicy join = JoinPolicy::kAuto;
  };
  // --- events; each with the time at which it is told
  // The rider stays until Leave. Errors: FailedPrecondition if it can never fit, saying what would; ResourceExhausted,
  // with kRetryAfterPayload, if too many wait.
  absl::StatusOr<PolicyRider*> Join(JoinRequest request, absl::Duration now, Actions& actions);
  // The rider wants its next module: a pin of a copy that operations can read, nullopt if a Grant or End follows.
  // Errors: why it ends, or why the module could not be loaded.
  absl::StatusOr<std::optional<Pin>> Acquire(PolicyRider& rider, ModuleIndex module, absl::Duration now,
                                             Actions& actions);
  // The rider's operation was issued, or it ends without one; it took the executor `took`.
  void Release(PolicyRider& rider, Pin pin, absl::Duration took, absl::Duration now, Actions& actions);
  void Cancel(PolicyRider& rider, const absl::Status& why, absl::Duration now, Actions& actions);
  // It holds no pin any more.
  void Leave(PolicyRider& rider, absl::Duration now, Actions& actions);

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
  // When Tick has something to do next, after the last event; infinite if never.
  absl::Duration NextTick() const;

  // --- what is known
  const MemoryBudget& budget(Memory memory) const { return budgets_[Index(memory)]; }
  const CopyStore& copies() const { return copies_; }
  const Sweeps& sweeps() const { return sweeps_; }
  Estimates& estimates() { return estimates_; }
  int64_t evictions(Memory memory) const { return evictions_[Index(memory)]; }
  int loads() const { return static_cast<int>(loads_.size()); }
  // Who gets what comes free on the device; null if nobody waited too long.
  const PolicyRider* elder(Memory device) const { return devices_[Index(device) - 1].elder.rider; }
  // How often that changed.
  int64_t elder_turns(Memory device) const { return devices_[Index(device) - 1].elder_turns; }
  // For whom a copy is loaded: those who ride, else those who begin later.
  void ForEachUser(const CopyKey& key, const std::function<void(PolicyRider&)>& visit);

  int64_t AdmittedTo(Memory device) const;

  // Recomputes from nothing what is kept up to date. Internal that says what differs.
  absl::Status Check() const;

 private:
  // What the oldest of those who waited too long is about to get: nobody else takes of it.
  struct Elder {
    const PolicyRider* rider = nullptr;
    int64_t bytes = 0;
    bool drains = false;  // It was refused memory: nobody takes fresh memory before all copies are gone.
  };
  struct Device {
    Memory memory = Memory::kDevice;
    bool in_host_memory = false;
    int loads = 0;
    Elder elder;
    int64_t elder_turns = 0;
    const PolicyRider* head = nullptr;  // Of admission, while it would fit.
    absl::Duration head_since;
    int64_t head_bytes = 0;  // That it waits for: others do not load ahead into them.
    const PolicyRider* planned_for = nullptr;
    bool streams = false;  // By the last plan something does not stay.
  };
  struct Load {
    Memory device;
    RiderId rider;
    Pin source;
    std::vector<Copy*> targets;
    bool enqueued = false;
  };
  // A load that wants room, and how soon what it loads is needed.
  struct Claim {
    PolicyRider* rider;
    ModuleIndex module;
    double next_use;  // Predicted seconds. Only copies whose next use is farther away give way.
    bool urgent;      // The rider waits for it, and nobody behind it could use the room sooner.
  };
  enum class Taking : uint8_t { kSpare, kAnything };  // What may give way: what need not stay, or everything.

  Device& At(Memory memory) { return devices_[Index(memory) - 1]; }
  MemoryBudget& Budget(Memory memory) { return budgets_[Index(memory)]; }

  // A rider that waited for admission for so many times Options::ageing is admitted by arrival alone.
  static constexpr int kPatienceInQueue = 8;

  // --- policy.cc
  // Everything that follows from an event, until nothing more does.
  void Decide(Actions& actions);
  bool GrantPending(Actions& actions);
  void EndRider(PolicyRider& rider, const absl::Status& why, Actions& actions);
  // The targets of a load that came to nothing go.
  void TakeBack(LoadId load, Actions& actions);
  int64_t EvictableBytes(Memory memory) const;
  // Of copies whose memory is there: the system can't refuse it any more.
  int64_t SettledBytes(Memory memory) const;

  // --- policy_admission.cc
  absl::Status CheckFits(const PolicyRider& rider) const;
  absl::Status MakePlaceInQueue(const PolicyRider& rider, Actions& actions);
  absl::Status QueueIsFull(int waiting) const;
  bool FitsNow(const Device& device, const PolicyRider& rider) const;
  PolicyRider* HeadOf(const Device& device);
  // Notes since when the head of admission fits.
  void WatchHead(Device& device);
  bool AdmitHead(Device& device, Actions& actions);
  bool TryAdmit(Device& device, PolicyRider& rider, Actions& actions);
  void BeginRider(PolicyRider& rider, Actions& actions);
  void BeginThoseAfter(const PolicyRider& rider, Actions& actions);
  const PolicyRider* ChooseSweep(PolicyRider& rider) const;
  JoinSituation SituationOf(const PolicyRider& rider, const PolicyRider& last) const;
  void UpdateWidest(const Device& device);
  // Decides again what may stay, for those who ride and `admitting`.
  void Plan(Device& device, const PolicyRider* admitting, Actions& actions);

  // --- policy_elder.cc
  bool IsAged(const PolicyRider& rider) const { return now_ - rider.since + rider.debt >= options_.ageing; }
  bool ServeElder(Device& device, Actions& actions);
  // The oldest claim that nothing serves yet; null if there is none. Promises copies to those that are served.
  PolicyRider* FindElder(Device& device);
  void ReserveFor(Device& device, const PolicyRider* rider);
  bool LoadForElder(Device& device, PolicyRider& rider, Actions& actions);
  void Doom(const Device& device, int64_t bytes);
  void ClearDoom(Memory memory);

  // --- policy_loads.cc
  bool LoadNext(Device& device, Actions& actions);
  std::optional<ModuleIndex> NextMissing(const PolicyRider& rider) const;
  Claim ClaimFor(PolicyRider& rider, ModuleIndex module);
  bool TryLoad(Device& device, const Claim& claim, Actions& actions);
  // A ready copy from which the module is made soonest; null: the checkpoint. `loading`: one is on its way.
  Copy* FindSource(const Itinerary& itinerary, ModuleIndex module, bool* loading) const;
  Copy& Place(const CopyKey& key, int64_t bytes, bool streams);
  void Start(Device& device, PolicyRider& rider, ModuleIndex module, Copy* source, Copy& computable, Actions& actions);
  void AddStops(PolicyRider& rider, ModuleIndex module, const Copy* source, std::vector<Copy*>& targets,
                Actions& actions);
  int64_t DeviceUse(Memory memory) const;

  // --- policy_room.cc
  // What copies could still take, the elder's share too.
  int64_t Room(Memory memory) const;
  // What others than the elder, and where it matters the head of admission, may take.
  int64_t RoomFor(Memory memory, bool urgent) const;
  // Evicts, of what `taking` allows and is used later than `next_use`, the farthest, until there is room. Evicts
  // nothing if that does not do, unless `insist`.
  bool MakeRoom(Memory memory, int64_t bytes, int64_t room_bytes, double next_use, Taking taking, const Copy* spare,
                bool insist, Actions& actions);
  bool MayStay(const CopyKey& key) const;
  bool IsKept(const Copy& copy) const;
  void Evict(Copy& copy, Actions& actions);
  void Drop(Copy& copy, Actions& actions);
  void DropUnlessWanted(Copy& copy, Actions& actions);
  void Trim(Memory memory, int64_t bytes, Actions& actions);
  bool Shrink(Memory memory, Actions& actions);
  void ReleaseIdle(Actions& actions);
  // What is in no copy goes back to the system, once nobody rode for long.
  void TrimIdle(Actions& actions);
  void MarkIdle(const PolicyRider& left, Actions& actions);

  const PolicyOptions options_;
  const std::function<bool(FormId, FormId)> leads_;
  absl::Duration now_;
  std::vector<Device> devices_;
  std::vector<MemoryBudget> budgets_;
  CopyStore copies_;
  Sweeps sweeps_;
  Estimates estimates_;
  std::vector<std::vector<int64_t>> stored_bytes_;  // By weights and module.
  std::map<LoadId, Load> loads_;
  LoadId next_load_ = 1;
  RiderId next_rider_ = 1;
  std::vector<int64_t> evictions_;
  absl::Duration next_idle_ = absl::InfiniteDuration();              // When a copy may have been idle for long enough.
  std::optional<absl::Duration> idle_since_ = absl::ZeroDuration();  // When the last rider left.
  struct Victim {
    bool kept;
    double next_use;
    Copy* copy;
  };
  std::vector<Victim> victims_;  // Scratch of MakeRoom.
  std::vector<Claim> claims_;    // Scratch of LoadNext.
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_H_
