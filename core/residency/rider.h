#ifndef DITSERVE_CORE_RESIDENCY_RIDER_H_
#define DITSERVE_CORE_RESIDENCY_RIDER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "core/base/priority.h"
#include "core/residency/lease.h"
#include "core/residency/policy/join_policy.h"
#include "core/storage/module.h"

namespace ditserve {

// Index of a model in its manager.
using ModelId = int;

class ResidencyManager;
struct RiderState;

// What a request asks of the manager, beside its profile.
struct RideOptions {
  int64_t activation_bytes = 0;
  Priority priority = Priority::kInteractive;
  JoinPolicy join = JoinPolicy::kAuto;
  int device = 0;                  // Of the manager's.
  std::vector<ModuleIndex> skips;  // Modules that the pass does without.
  int64_t host_bytes = 0;          // Of the host's memory, beside activations in a device's own.
};

// What a rider has used so far.
struct RiderAccount {
  absl::Duration queue;           // From Join until its pass began.
  std::optional<JoinCosts> join;  // Predicted when it was admitted while others were riding.
  bool waited_for_sweep = false;  // It began with the next sweep.
  absl::Duration stall;           // Waiting for weights.
  int64_t disk_read_bytes = 0;    // Its share of what was moved.
  int64_t device_copy_bytes = 0;  // Its share.
  int64_t peak_device_bytes = 0;  // Largest use of the device budget since admission, all riders together.
  int most_riders = 0;            // Most riders at one time on its model, itself included.
  int modules_done = 0;
};

// A request in a sweep: one pass over a model's modules in execution order, but for those that it skips.
//
// Ownership: destroying it leaves the sweep; its leases must be gone by then, its manager must not.
// Thread safety: Acquire is called on the executor; the rest is thread-safe.
class Rider final : public LeaseSource {
 public:
  ~Rider() override;

  void Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) override;

  // Ends the pass: a waiting admission or acquisition fails with `why` at once, every later one too.
  void Cancel(const absl::Status& why);

  // Its next lap: one more pass of the same profile on the same device, in the memory that this one has, which it gets
  // when this one ends. It is there for what loads and plans at once, and waits for nobody: `admitted` is called on the
  // executor, when this one has passed its last module. At most one; this one is destroyed first, or the next one was
  // never begun. `undecided`: the first of its modules that it may pass over, as is decided on the way; those from
  // there on are not loaded for it before it acquires one of them. Errors: why this one ends.
  absl::StatusOr<std::unique_ptr<Rider>> JoinLap(std::vector<ModuleIndex> skips, std::optional<ModuleIndex> undecided,
                                                 absl::AnyInvocable<void(absl::Status) &&> admitted);

  RiderAccount account() const;

  // On which it rides, of the manager's.
  int device() const;

  // On the executor, once, before its operations: the device's memory that is booked for its activations. Operations
  // come after those of who had it before, and it goes to others behind all that were issued when the rider ends. Empty
  // where operations compute in the host's memory, which LibTorch takes. Errors: as Device::ComputeAfter.
  absl::StatusOr<absl::Span<std::byte>> TakeActivations();

 private:
  friend class ResidencyManager;
  Rider(ResidencyManager* manager, RiderState* state) : manager_(manager), state_(state) {}

  ResidencyManager* const manager_;
  RiderState* const state_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_RIDER_H_
