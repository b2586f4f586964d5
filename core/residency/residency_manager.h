#ifndef DITSERVE_CORE_RESIDENCY_RESIDENCY_MANAGER_H_
#define DITSERVE_CORE_RESIDENCY_RESIDENCY_MANAGER_H_

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "core/base/clock.h"
#include "core/base/doorbell.h"
#include "core/base/executor.h"
#include "core/devices/completions.h"
#include "core/devices/device.h"
#include "core/memory/arena.h"
#include "core/memory/buffer.h"
#include "core/memory/ledger.h"
#include "core/placement/profile.h"
#include "core/placement/route_maker.h"
#include "core/residency/forecast.h"
#include "core/residency/policy/outlook.h"
#include "core/residency/policy/policy.h"
#include "core/residency/residency_snapshot.h"
#include "core/residency/rider.h"
#include "core/residency/transfers/transfer_engine.h"
#include "core/residency/transfers/transfer_pace.h"
#include "core/storage/model_weights.h"

namespace ditserve {

class ResidencyManager;

// A rider as the manager knows it. Guarded by the manager's mutex.
struct RiderState {
  ResidencyManager* manager = nullptr;
  PolicyRider* policy = nullptr;
  ModelId model = 0;
  Profile profile;
  int device = 0;
  absl::AnyInvocable<void(absl::Status) &&> admitted;              // Null once called.
  absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> acquisition;  // What it waits for.
  absl::Duration acquired;                                         // From when on it waits.
  absl::Duration leased;                                           // When it was given its last lease.
  absl::Duration joined;
  Reservation activations;
  Reservation on_host;     // Of its host_bytes.
  Buffer memory;           // Of these, in the device's arena.
  bool preparing = false;  // A thread takes that memory.
  bool computes = false;   // Operations are issued that use it.
  RiderState* next_lap = nullptr;
  RiderState* lap_before = nullptr;
  std::optional<int64_t> watermark;
  RiderAccount account;
};

// Carries out what the Policy decides: one lock, an event in, actions out; then, without the lock, transfers are
// submitted, work is posted to executors, and memory goes back to the system. What a Copy of the policy holds is here:
// its part of an arena and its reservation in the ledger, which keeps books of its own.
//
// Thread safety: thread-safe. Lock order: its mutex before the transfer engine's, executors', arenas' and ledger's. No
// transfer, allocation of weights, or callback runs while it is held.
class ResidencyManager {
 public:
  using Options = PolicyOptions;

  // A device, and the executor that computes on it.
  struct ComputingDevice {
    Device* device;
    Executor* executor;
  };

  // `arenas`: by Index(Memory), the host's first. All must outlive the manager, and executors' and the engine's threads
  // must not use it after its destruction: destroy riders, then drain `transfers`, before it.
  ResidencyManager(const Options& options, std::vector<ComputingDevice> devices, std::vector<Arena*> arenas,
                   Ledger* ledger, TransferEngine* transfers, const Clock* clock);
  ~ResidencyManager();

  ModelId AddModel(std::unique_ptr<ModelWeights> weights) ABSL_LOCKS_EXCLUDED(mutex_);
  // All copies of it go. Errors: FailedPrecondition while requests ride on it, or a transfer of its weights is
  // under way.
  absl::Status RemoveModel(ModelId model) ABSL_LOCKS_EXCLUDED(mutex_);

  // Lets a request ride. `admitted` is called once: on the device's executor with OK when the rider may acquire, or on
  // a thread of the manager's, which no computing holds up, with why not: what was said of it to Cancel,
  // FailedPrecondition if a budget became too small while it waited, or ResourceExhausted if a more urgent request took
  // its place in the queue.
  // Errors: FailedPrecondition, with a ShortageOf, if it can never fit, saying what would; ResourceExhausted, with a
  // RetryAfterOf, if too many wait.
  absl::StatusOr<std::unique_ptr<Rider>> Join(ModelId model, const Profile& profile, const RideOptions& options,
                                              absl::AnyInvocable<void(absl::Status) &&> admitted)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // The same, in one of several ways, which differ in device, activations and what they hold on the host: `choose`
  // picks one (its index) from what the request would find if it took each, under the mutex, so that of two that come
  // together the second knows of the first. It must be quick.
  absl::StatusOr<std::unique_ptr<Rider>> Join(ModelId model, const Profile& profile, absl::Span<const RideOptions> ways,
                                              absl::FunctionRef<size_t(absl::Span<const RideOutlook>)> choose,
                                              absl::AnyInvocable<void(absl::Status) &&> admitted)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // What a request would find if it came now, by way.
  std::vector<RideOutlook> Outlooks(ModelId model, const Profile& profile, absl::Span<const RideOptions> ways) const
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Device bytes that a rider of this profile, which does without `skips`, needs beside its activations.
  int64_t WindowBytes(ModelId model, const Profile& profile, absl::Span<const ModuleIndex> skips = {},
                      int device = 0) const ABSL_LOCKS_EXCLUDED(mutex_);

  // What `riders` such requests would take if they came now, together, and nobody else rode. `computing`: what the
  // executor takes for each module, empty if that is not known. While the checkpoint has no measured speed it is
  // taken to be a gigabyte a second; while copies to a device with memory of its own have none they are taken to be as
  // slow as the checkpoint. Of what was never done in host memory a little is tried. Changes nothing. Errors: as Join
  // and ForecastLaps.
  absl::StatusOr<Forecast> ForecastRide(ModelId model, const Profile& profile, const RideOptions& options, int riders,
                                        std::vector<absl::Duration> computing) const ABSL_LOCKS_EXCLUDED(mutex_);
  // How fast weights move to a device, as measured so far.
  TransferSpeeds SpeedsOf(int device = 0) const ABSL_LOCKS_EXCLUDED(mutex_);
  // In which forms operations read these modules under a profile.
  std::vector<FormId> FormsOf(ModelId model, const Profile& profile, int device, absl::Span<const ModuleIndex> modules)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether operations read the same values under either profile.
  bool HaveEqualValues(ModelId model, const Profile& a, const Profile& b, int device = 0) const
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Changes a budget while serving. Copies go at once until the rest fits, but for what running requests need: their
  // activations and one module. What they need beyond the budget is given back as they end.
  // Errors: FailedPrecondition if what is taken for good alone is more: slots of transfers, inputs and outputs, a
  // device's runtime.
  absl::Status SetBudget(Memory memory, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether it would be refused.
  absl::Status CheckBudget(Memory memory, int64_t bytes) const;
  // Says what other processes leave of a memory, at the moment: requests wait for more, and are never refused for it.
  void SetPressure(Memory memory, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // What is taken of it for good.
  int64_t least_bytes(Memory memory) const { return least_bytes_[Index(memory)]; }

  // Does what is due by now: idle copies go, who waited long goes first, what was read goes back. The manager's thread
  // calls it; tests that move the clock do too.
  void Tick() ABSL_LOCKS_EXCLUDED(mutex_);

  // Whether a transfer is under way, or memory on its way back to the system.
  bool Loading() const ABSL_LOCKS_EXCLUDED(mutex_);

  // One consistent moment.
  ResidencySnapshot Snapshot() const ABSL_LOCKS_EXCLUDED(mutex_);

  // The tiers that hold each module of `model`, nearest first; disk always does.
  std::vector<std::vector<Tier>> ModuleTiers(ModelId model) const ABSL_LOCKS_EXCLUDED(mutex_);

  // What the policy keeps up to date, the ledger and the arenas agree. Internal that says what differs.
  absl::Status Check() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  friend class Rider;

  // What a copy holds.
  struct Holding {
    Reservation reservation;  // The last to go: until then the memory is there.
    Buffer buffer;
    LeasedTensors tensors;
  };

  // What is to be done after the mutex is released.
  struct Trimmed {
    Garbage garbage;
    Reservation reservation;
    Memory memory;
  };
  struct Post {
    Executor* executor;
    Executor::Work work;
    std::optional<Turn> turn;
  };
  struct Deferred {
    std::vector<Transfer> transfers;
    std::vector<Trimmed> trimmed;
    std::vector<Post> posts;
    std::vector<RiderState*> preparations;  // Of memory for their activations.
  };

  // --- riders
  absl::StatusOr<std::unique_ptr<Rider>> JoinLap(RiderState* before, const std::vector<ModuleIndex>& skips,
                                                 std::optional<ModuleIndex> undecided,
                                                 absl::AnyInvocable<void(absl::Status) &&> admitted)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Acquire(RiderState* rider, ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Release(RiderState* rider, Pin pin) ABSL_LOCKS_EXCLUDED(mutex_);
  void Cancel(RiderState* rider, const absl::Status& why) ABSL_LOCKS_EXCLUDED(mutex_);
  void Leave(RiderState* rider) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<absl::Span<std::byte>> TakeActivations(RiderState* rider) ABSL_LOCKS_EXCLUDED(mutex_);
  // Its activations' memory goes to the cache, behind `operations`. What of it was never there.
  int64_t GiveBackLocked(RiderState& rider, EventPtr operations) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  RiderAccount AccountOf(const RiderState* rider) const ABSL_LOCKS_EXCLUDED(mutex_);
  Lease MakeLease(RiderState& rider, Pin pin) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status JoinLocked(RiderState& state, Policy::JoinRequest request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  RiderState& StateOf(const PolicyRider* rider) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return *states_.at(rider); }
  Turn TurnOf(const RiderState& rider) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return {rider.policy->priority, absl::Seconds(rider.policy->attained_seconds())};
  }

  // --- actions (residency_actions.cc)
  // Carries out `actions_` as far as it can be done under the mutex.
  void ApplyLocked(Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StartLocked(const StartLoad& load, Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void HoldLocked(const Copy& copy) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AdmitLocked(const Admit& admit) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void BeginLocked(RiderState& rider, Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Has the device give memory for the rider's activations, and lets it begin; or it waits for admission again.
  void Prepare(RiderState* rider) ABSL_LOCKS_EXCLUDED(mutex_);
  void RefuseLocked(RiderState& rider, const absl::Status& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Post AdmissionOf(RiderState& rider, absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void GrantLocked(RiderState& rider, Pin pin, Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndLocked(RiderState& rider, const absl::Status& why, Deferred& deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Does the rest, and what follows from that.
  void Finish(Deferred deferred) ABSL_LOCKS_EXCLUDED(mutex_);
  void SettleBudgetsLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  void OnEnqueued(LoadId load, int device, const std::vector<Copy*>& targets, absl::Status status, TransferCost cost)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void OnDone(LoadId load, int device, const std::vector<Copy*>& targets, const absl::Status& status)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void ArrivedLocked(int device, const std::vector<Copy*>& targets, const TransferCost& cost)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FailedLocked(LoadId load, const std::vector<Copy*>& targets, const absl::Status& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Sets what loads take in `request`, but their work.
  void SetSpeeds(int device, ForecastRequest& request) const ABSL_LOCKS_EXCLUDED(mutex_);
  // `forms`, here and below: the manager's, or a copy of them.
  Policy::JoinRequest RequestLocked(ModelId model, const Profile& profile, const RideOptions& options,
                                    FormTable& forms) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Makes of `request`, if there is one, what it is by another way. Routes that are equal are made once.
  void TakeLocked(ModelId model, const Profile& profile, const RideOptions& way, FormTable& forms,
                  std::optional<Policy::JoinRequest>& request) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `request` is by the last of them then.
  std::vector<RideOutlook> OutlooksLocked(ModelId model, const Profile& profile, absl::Span<const RideOptions> ways,
                                          FormTable& forms, std::optional<Policy::JoinRequest>& request) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::vector<Route> RoutesLocked(ModelId model, const Profile& profile, int device, FormTable& forms) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What a rider's activations take of the device's memory.
  int64_t ActivationBytesIn(const RideOptions& options) const;
  MemoryInfo InfoLocked(Memory memory) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The manager's thread: calls Tick, and tells those who were never admitted.
  void Keep() ABSL_LOCKS_EXCLUDED(mutex_);

  const std::vector<ComputingDevice> devices_;
  const std::vector<Arena*> arenas_;  // By Index(Memory).
  Ledger* const ledger_;
  TransferEngine* const transfers_;
  const Clock* const clock_;
  const std::vector<int64_t> least_bytes_;  // By Index(Memory).

  mutable absl::Mutex mutex_;
  FormTable forms_ ABSL_GUARDED_BY(mutex_);
  Policy policy_ ABSL_GUARDED_BY(mutex_);
  Actions actions_ ABSL_GUARDED_BY(mutex_);  // Of the event that is being applied.
  std::vector<std::shared_ptr<const ModelWeights>> models_ ABSL_GUARDED_BY(mutex_);
  std::list<RiderState> riders_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<const PolicyRider*, RiderState*> states_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<Holding>> holdings_ ABSL_GUARDED_BY(mutex_);    // By Copy::id.
  std::vector<Reservation> cached_ ABSL_GUARDED_BY(mutex_);                   // Of arenas' holes, by Index(Memory).
  std::vector<int64_t> fixed_bytes_ ABSL_GUARDED_BY(mutex_);                  // Of arenas, taken for good.
  std::vector<int64_t> force_bytes_ ABSL_GUARDED_BY(mutex_);                  // As the ledger was told.
  absl::flat_hash_map<LoadId, absl::Status> failed_ ABSL_GUARDED_BY(mutex_);  // Until their transfers are done.
  std::vector<Trimmed> still_read_ ABSL_GUARDED_BY(mutex_);  // Freed once nothing reads it; nobody waits for that.
  std::vector<TransferCost> moved_ ABSL_GUARDED_BY(mutex_);  // Since the start, by device.
  std::vector<TransferPace> paces_ ABSL_GUARDED_BY(mutex_);  // Likewise.
  std::vector<int> leases_ ABSL_GUARDED_BY(mutex_);          // That riders hold, by device.
  std::vector<int64_t> computed_ ABSL_GUARDED_BY(mutex_);    // Modules since the start, by device.
  std::vector<absl::Duration> computed_until_ ABSL_GUARDED_BY(mutex_);  // When each executor last ended an operation.
  absl::Duration look_again_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteDuration();  // At still_read_.
  absl::Duration next_tick_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteDuration();
  std::vector<absl::AnyInvocable<void() &&>> refusals_ ABSL_GUARDED_BY(mutex_);     // To be told by Keep.
  absl::Duration sleeps_until_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteDuration();  // Of Keep.
  Doorbell sooner_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread keeper_;
  std::vector<std::unique_ptr<Completions>> preparations_;  // By device: takes memory for activations.
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_RESIDENCY_MANAGER_H_
