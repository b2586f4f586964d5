#ifndef DITSERVE_CORE_RESIDENCY_RESIDENCY_MANAGER_H_
#define DITSERVE_CORE_RESIDENCY_RESIDENCY_MANAGER_H_

#include <array>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/base/clock.h"
#include "core/base/executor.h"
#include "core/devices/device.h"
#include "core/memory/arena.h"
#include "core/memory/buffer.h"
#include "core/memory/ledger.h"
#include "core/placement/profile.h"
#include "core/placement/route.h"
#include "core/residency/copy_table.h"
#include "core/residency/join_policy.h"
#include "core/residency/keep_plan.h"
#include "core/residency/residency_snapshot.h"
#include "core/residency/rider.h"
#include "core/residency/streaming_window.h"
#include "core/residency/transfer_engine.h"
#include "core/storage/model_weights.h"

namespace ditserve {

// Decides which copies of which weights are where, for all riders of all profiles together.
//
// One rule for prefetch, eviction and sharing: for every copy the distance to its next use is known, because the order
// of modules is. What is missing and needed nearest is loaded next; to make room for it, copies go whose next use is
// farthest, and farther than its own. Copies of equal values in equal dtype and tier are shared by all profiles. Which
// may stay between their uses is planned for all riders together (KeepPlan); the others stream through a window.
//
// Everything is reserved in the ledger before it is allocated. A rider is admitted when its activations fit beside
// those of the others and one segment of the window, so what an admitted rider needs next can always be loaded once the
// leases of others end.
//
// Thread safety: thread-safe. Lock order: its mutex before the transfer engine's, the executor's and the ledger's. No
// transfer, allocation or callback runs while it is held.
class ResidencyManager {
 public:
  struct Options {
    int max_riders = 16;                              // Admitted at one time.
    int max_waiting = 64;                             // Riders that wait for admission.
    absl::Duration idle_release = absl::Seconds(60);  // After this, idle copies go back to where profiles rest.
  };

  // All must outlive the manager, and the executor and engine's threads must not use it after its destruction:
  // destroy riders, then drain `transfers`, before it.
  ResidencyManager(const Options& options, Device* device, Arena* host, Arena* of_device, Ledger* ledger,
                   TransferEngine* transfers, Executor* executor, const Clock* clock);
  ~ResidencyManager();

  ModelId AddModel(std::unique_ptr<ModelWeights> weights) ABSL_LOCKS_EXCLUDED(mutex_);

  // Lets a request ride. `admitted` is called once on the executor: with OK when the rider may acquire, or with why
  // not: what was said of it to Cancel, or FailedPrecondition if a budget became too small while it waited.
  // Errors: FailedPrecondition if it can never fit, saying what would; ResourceExhausted, with kRetryAfterPayload, if
  // too many wait.
  absl::StatusOr<std::unique_ptr<Rider>> Join(ModelId model, const Profile& profile, const RideOptions& options,
                                              absl::AnyInvocable<void(absl::Status) &&> admitted)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Device bytes that a rider of this profile needs beside its activations.
  int64_t WindowBytes(ModelId model, const Profile& profile) ABSL_LOCKS_EXCLUDED(mutex_);

  // Changes a budget while serving. Copies go at once until the rest fits, but for what running requests need: their
  // activations and one segment of the window. What they need beyond the budget is given back as they end.
  // Errors: FailedPrecondition if the transfer slots alone take more.
  absl::Status SetBudget(Memory memory, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t least_host_bytes() const { return transfers_->staging_bytes(); }

  // Sends copies that no request has used for Options::idle_release to where their profiles rest. Returns when to call
  // it again, on the clock's scale.
  absl::Duration ReleaseIdle() ABSL_LOCKS_EXCLUDED(mutex_);

  // Whether a transfer is under way.
  bool Loading() const ABSL_LOCKS_EXCLUDED(mutex_);

  // One consistent moment.
  ResidencySnapshot Snapshot() const ABSL_LOCKS_EXCLUDED(mutex_);

  // The tiers that hold each module of `model`, nearest first; disk always does.
  std::vector<std::vector<Tier>> ModuleTiers(ModelId model) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  friend class Rider;

  // Segments of the streaming window: for a module that is computed with, and two that arrive.
  static constexpr int kWindowSegments = 3;
  // A rider with a limit has at most so many ahead of it: one that is computed with, one that arrives.
  static constexpr int kLimitedSegments = 2;

  struct Acquisition {
    absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done;
    absl::Duration since;
  };

  struct RiderState {
    const Rider* rider = nullptr;
    ModelId model = 0;
    Profile profile;
    RideOptions options;
    std::vector<Route> routes;
    std::vector<uint32_t> kept;                          // What may stay: KeepPlan::kept.
    int64_t window_bytes = 0;                            // The smallest streaming window that it can go on with.
    ModuleIndex next = 0;                                // The module it acquires next.
    absl::AnyInvocable<void(absl::Status) &&> admitted;  // Null once called.
    bool active = false;                                 // Admitted: its activations are reserved.
    const RiderState* after = nullptr;                   // It begins when this one leaves.
    absl::Duration attained;                             // Its place among those that compute: see Turn.
    absl::Duration computing;                            // Time it has computed.
    absl::Duration leased;                               // When it was given its last lease.
    std::optional<Acquisition> pending;
    absl::Status ended;                                          // Not OK once cancelled.
    absl::flat_hash_map<ModuleIndex, absl::Status> load_errors;  // Of modules ahead.
    Reservation activations;
    int64_t watermark = 0;
    absl::Duration joined, begun;
    RiderAccount account;
  };

  struct Model {
    std::unique_ptr<ModelWeights> weights;
    CopyTable copies;
    double computing_per_byte = 0;  // Seconds that a pass computes for each byte of activations; 0: not known yet.
  };

  // Time in which transfers were under way, and what they moved: how fast the way to the device is.
  struct Pace {
    absl::Duration busy;
    int64_t stored_bytes = 0;
  };

  // Copies that a transfer reads and writes.
  struct Load {
    Copy* source = nullptr;  // Null: the checkpoint.
    std::vector<Copy*> targets;
  };

  // A load that wants room, and how soon what it loads is needed.
  struct Claim {
    const RiderState* state;
    ModuleIndex module;
    int64_t next_use;  // Modules. Only copies whose next use is farther away give way.
  };

  // What is to be done after the mutex is released.
  struct Deferred {
    std::vector<Transfer> transfers;
    std::vector<Room> garbage;  // Freed, and so given back to the ledger.
    std::vector<std::pair<Executor::Work, Turn>> posts;
  };

  // --- riders (residency_riders.cc)
  void Acquire(const Rider* rider, ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Release(const Rider* rider, Copy* copy) ABSL_LOCKS_EXCLUDED(mutex_);
  void Cancel(const Rider* rider, const absl::Status& why) ABSL_LOCKS_EXCLUDED(mutex_);
  void Leave(const Rider* rider) ABSL_LOCKS_EXCLUDED(mutex_);
  RiderAccount AccountOf(const Rider* rider) const ABSL_LOCKS_EXCLUDED(mutex_);
  Lease MakeLease(RiderState& state, Copy& copy) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void GrantLocked(RiderState& state, Copy& copy, Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FailLocked(RiderState& state, const absl::Status& status, Deferred& deferred)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReleaseCopiesOf(const RiderState& left, Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LearnFrom(const RiderState& left) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Turn TurnOf(const RiderState& state) const { return {state.options.priority, state.attained}; }
  RiderState& StateOf(const Rider* rider) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  const RiderState& StateOf(const Rider* rider) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // --- admission (residency_admission.cc)
  absl::Status CheckFits(const RiderState& state) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckQueue() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Returns whether somebody waits for memory that is not free yet.
  bool AdmitLocked(Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  enum class Admission : uint8_t { kAdmitted, kNotNow, kOnceThereIsRoom };
  Admission TryAdmitLocked(RiderState& state, Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void BeginLocked(RiderState& state, Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RefuseLocked(RiderState& state, const absl::Status& why, Deferred& deferred)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The rider after which `state` begins, by its policy; null: it begins now.
  const RiderState* ChooseSweep(RiderState& state) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  JoinSituation SituationOf(const RiderState& state, const RiderState& last) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What running requests must have, and `admitting`, if it is not null: their activations, and one window.
  struct Demand {
    int64_t activation_bytes = 0;
    int64_t window_bytes = 0;
  };
  Demand DemandOf(const RiderState* admitting = nullptr) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Decides again what may stay, for those who ride and `admitting`.
  void PlanLocked(const RiderState* admitting = nullptr) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Sets the budgets that were asked for, as far as running requests allow, and evicts down to them. Returns whether
  // more is in use.
  bool ShrinkLocked(Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // --- transfers (residency_manager.cc)
  // Admits, loads and evicts until nothing more can be done now, and does what is deferred.
  void Advance(Deferred deferred = {}) ABSL_LOCKS_EXCLUDED(mutex_);
  // `urgent_only`: nothing that could wait, because room is needed for something else.
  void LoadLocked(bool urgent_only, Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The first module ahead of the rider that it can't compute with, nor will when what is under way is done; nullopt
  // if there is none or the rider has enough ahead of it.
  std::optional<ModuleIndex> NextMissing(const RiderState& state) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool StartLoadLocked(const Claim& claim, Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The copy that operations will read, with room for it; null if there is no room now.
  Copy* AddComputableLocked(const Claim& claim, Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A copy that may stay; null if there is no room now.
  Copy* TryKeepLocked(const Stop& stop, int64_t bytes, const Claim& claim, Deferred& deferred)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Copies at stops on the way from `source` that there is room for.
  std::vector<Copy*> AddStopsLocked(const RiderState& state, ModuleIndex module, const Copy* source, Deferred& deferred)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Transfer TransferFor(ModelId model, ModuleIndex module, Load load) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnLoaded(ModelId model, ModuleIndex module, const Load& load, const absl::Status& status, TransferCost cost)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void ArriveLocked(ModelId model, const Load& load, TransferCost cost, Deferred& deferred)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FailLoadLocked(ModelId model, ModuleIndex module, const Load& load, const absl::Status& status,
                      Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // --- copies and room for them (residency_copies.cc)
  // For whom a copy is loaded: those who ride, else those who begin later.
  std::vector<RiderState*> UsersOf(ModelId model, const Copy& copy) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A ready or loading copy that the rider's operations can read; null if there is none.
  Copy* FindComputable(const RiderState& state, ModuleIndex module) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The copy, ready or loading, from which values of `form` are made soonest; null: only the checkpoint.
  Copy* FindSource(const RiderState& state, ModuleIndex module) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether values of `form` can be made from the copy's.
  bool Leads(const Copy& copy, FormId form) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsOperand(const Route& route, const Stop& stop) const;
  bool Computes(const RiderState& state, const Copy& copy) const {
    return IsOperand(state.routes[copy.module], {copy.tier, copy.form});
  }
  // Whether the rider has yet to compute with the copy in this pass.
  bool Needs(const RiderState& state, ModelId model, const Copy& copy) const;
  // Whether a rider does; one that has not begun needs what was loaded for it.
  bool IsNeeded(ModelId model, const Copy& copy) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether the rider's copy at the stop may stay after its use.
  static bool MayStay(const RiderState& state, ModuleIndex module, size_t stop);
  // Whether it may stay where it is for a rider, within its limit.
  bool IsKept(ModelId model, const Copy& copy) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether a rider's profile would keep it, but for the limit.
  bool IsClaimed(ModelId model, const Copy& copy) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Modules until the rider is at `module`, in this pass or the next.
  int64_t Distance(const RiderState& state, ModuleIndex module) const;
  // Modules until its next use; larger than any such for what no rider uses.
  int64_t NextUse(ModelId model, const Copy& copy) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Device bytes that vram_limit counts: weights and activations.
  int64_t DeviceUse() const;

  // Whether `behind` can live off what `state` loads, and is not much slower.
  bool IsLed(const RiderState& state, const RiderState& behind, ModuleIndex module) const;
  Claim ClaimFor(const RiderState& state, ModuleIndex module) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A copy that can be evicted.
  struct Victim {
    bool kept;
    int64_t next_use;
    ModelId model;
    Copy* copy;
  };
  // Copies in the streaming window, or those in `memory` that are not, whose next use is farther than `next_use`: first
  // those that need not stay, and of these the farthest.
  std::vector<Victim> VictimsLocked(Memory memory, bool in_window, int64_t next_use)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Memory of its own for a copy that may stay, for which copies give way that may not. Nullopt if there is no room
  // now; if something is in `deferred.garbage` then, there may be once it is freed.
  std::optional<Room> MakeRoomLocked(Memory memory, int64_t bytes, const Claim& claim, Deferred& deferred)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Bytes that must be freed, beside those that are leaving, before `bytes` more can be reserved within `budget_bytes`.
  int64_t MissingBytes(Memory memory, int64_t bytes, int64_t budget_bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // If that makes room for `bytes` more, evicts copies that need not stay and whose next use is after the claim's. What
  // is free of a window through which nobody streams goes first.
  void YieldLocked(Memory memory, int64_t bytes, const Claim& claim, Deferred& deferred)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A part of the streaming window, as above.
  std::optional<Room> MakeWindowRoomLocked(int64_t bytes, const Claim& claim, Deferred& deferred)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Adds a segment of `bytes` to the window. False if there is no room now; as above.
  bool GrowWindowLocked(int64_t bytes, bool urgent, const Claim& claim, Deferred& deferred)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Evicts victims from the first on until `bytes` of their own memory are in the garbage; returns how many are.
  int64_t EvictLocked(const std::vector<Victim>& victims, int64_t bytes, Deferred& deferred)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Frees `bytes`, or as many as nobody holds: what need not stay, then the window, then the rest. While nobody rides
  // what is free of the window goes first.
  void FreeLocked(Memory memory, int64_t bytes, Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Removes free segments of the window; returns their bytes.
  int64_t RemoveWindowLocked(int64_t bytes, Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Frees the memory once the mutex is released. Until then it is reserved, and counted as leaving.
  void DiscardLocked(Room room, Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Arena& ArenaOf(Memory memory) const { return IsHost(memory) ? *host_ : *of_device_; }
  // Takes the memory of holes that its bytes left, and ends its reservation.
  void Free(Room room) const;
  // Whether memory is about to be freed; whoever frees it goes on then.
  bool IsLeaving(Memory memory) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return leaving_bytes_[Index(memory)] > 0;
  }
  // Gives the copy's memory back.
  void DropLocked(ModelId model, Copy& copy, Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropUnlessWantedLocked(ModelId model, Copy& copy, Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Drops copies of the rider's model that are over its limit, farthest next use first.
  void EnforceLimitLocked(const RiderState& state, Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsEvictable(const Copy& copy) const { return copy.ready && copy.pins == 0; }

  const Options options_;
  Device* const device_;
  Arena* const host_;
  Arena* const of_device_;
  Ledger* const ledger_;
  TransferEngine* const transfers_;
  Executor* const executor_;
  const Clock* const clock_;

  mutable absl::Mutex mutex_;
  FormTable forms_ ABSL_GUARDED_BY(mutex_);
  std::deque<Model> models_ ABSL_GUARDED_BY(mutex_);
  std::list<RiderState> riders_ ABSL_GUARDED_BY(mutex_);  // In order of arrival, waiting ones too.
  StreamingWindow window_ ABSL_GUARDED_BY(mutex_);
  std::array<int64_t, 2> wanted_bytes_ ABSL_GUARDED_BY(mutex_);        // The budgets that were asked for, by Memory.
  std::array<int64_t, 2> leaving_bytes_ ABSL_GUARDED_BY(mutex_) = {};  // Reserved still, but about to be freed.
  bool streams_ ABSL_GUARDED_BY(mutex_) = false;                       // By the last plan something does not stay.
  const RiderState* planned_for_ ABSL_GUARDED_BY(mutex_) = nullptr;    // Whom the last plan was to make room for.
  std::array<int64_t, 2> evictions_ ABSL_GUARDED_BY(mutex_) = {};
  TransferCost moved_ ABSL_GUARDED_BY(mutex_);  // Since the start.
  Pace pace_ ABSL_GUARDED_BY(mutex_);
  int loads_in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Duration loading_since_ ABSL_GUARDED_BY(mutex_);              // While loads are in flight.
  absl::Duration computed_until_ ABSL_GUARDED_BY(mutex_);             // When the executor last ended an operation.
  std::optional<absl::Duration> usual_ride_ ABSL_GUARDED_BY(mutex_);  // How long riders ride, lately.
  std::optional<absl::Duration> idle_since_ ABSL_GUARDED_BY(mutex_);  // When the last rider left.
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_RESIDENCY_MANAGER_H_
