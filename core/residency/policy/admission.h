#ifndef DITSERVE_CORE_RESIDENCY_POLICY_ADMISSION_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_ADMISSION_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "core/base/memory.h"
#include "core/residency/policy/actions.h"
#include "core/residency/policy/idle.h"
#include "core/residency/policy/join_policy.h"
#include "core/residency/policy/policy_state.h"
#include "core/residency/policy/room.h"
#include "core/residency/policy/sweeps.h"

namespace ditserve {

// What a request takes of a device's memory, and beside that of the host's.
struct RideBytes {
  int64_t activations = 0;
  int64_t widest = 0;  // The largest module as operations read it.
  int64_t host = 0;
};
inline RideBytes BytesOf(const PolicyRider& rider) {
  return {rider.activation_bytes, rider.widest_bytes, rider.host_bytes};
}

// Who may ride, from when, and until when.
class Admission {
 public:
  // Who waited for so many times PolicyOptions::ageing is admitted by arrival alone.
  static constexpr int kPatience = 8;

  Admission(PolicyState& state, Room& room, Idle& idle);

  // Errors: FailedPrecondition, with a ShortageOf, if that can never fit, saying what would.
  absl::Status CheckFits(Memory device, const RideBytes& bytes) const;
  // Errors: ResourceExhausted, with a RetryAfterOf, if too many wait.
  absl::Status MakePlaceInQueue(const PolicyRider& rider, Actions& actions);

  // How long a request that came now would wait to be admitted, if it is as those before it were: none where nobody
  // waits, a place is free and it fits.
  absl::Duration PredictedWait(const DeviceState& device, const RideBytes& bytes) const;

  // Notes since when the head of the queue fits.
  void WatchHead(DeviceState& device);
  // Those of all devices, the first of all first: what it waits for in the host's memory nobody takes after it.
  bool AdmitHeads(Actions& actions);
  // Makes room for the rider, and admits it once there is.
  bool TryAdmit(DeviceState& device, PolicyRider& rider, Actions& actions);

  // Admits the rider as the next lap of `before`.
  void Follow(PolicyRider& rider, const PolicyRider& before, Actions& actions);

  // Those who wait for the sweep of `rider`, which is over, begin.
  void BeginThoseAfter(const PolicyRider& rider, Actions& actions);
  // Whoever waited for something is told; who computes is told when it acquires next.
  void EndRider(PolicyRider& rider, const absl::Status& why, Actions& actions);
  // The admitted rider waits again; it has begun nothing.
  void TakeBack(PolicyRider& rider, int64_t lost_bytes, Actions& actions);
  // The rider is gone.
  void Leave(PolicyRider& rider, int64_t lost_bytes, Actions& actions);

 private:
  absl::Duration UntilAPlaceIsFree(const DeviceState& device) const;
  absl::Status QueueIsFull(const DeviceState& device, int waiting) const;
  // Its activations' memory is free, but for what was never there.
  void GiveUp(DeviceState& device, PolicyRider& rider, int64_t lost_bytes, Actions& actions);
  // What follows from that it is admitted now.
  void Admitted(DeviceState& device, PolicyRider& rider, int64_t grown_bytes, Actions& actions);
  // `rider`: whose bytes they are; null: of one that comes now.
  bool FitsNow(const DeviceState& device, const RideBytes& bytes, const PolicyRider* rider = nullptr) const;
  bool FitsOnDevice(const DeviceState& device, const RideBytes& bytes) const;
  bool FitsOnHost(const DeviceState& device, const RideBytes& bytes, const PolicyRider* rider) const;
  // What those wait for on other devices whom the rider must not overtake there: they go before it, and their devices
  // have room for them.
  int64_t HostBytesBefore(const DeviceState& device, const PolicyRider* rider) const;
  bool GoesBefore(const PolicyRider& a, const PolicyRider& b) const;
  PolicyRider* HeadOf(const DeviceState& device) const;
  // A device's own memory serves activations as it served copies. The host's goes back to the system first, which gives
  // it to operations.
  bool Reuses(Memory memory) const { return !IsHost(memory) && !devices_[Index(memory) - 1].in_host_memory; }
  // What of a memory is free for activations.
  int64_t FreeBytes(Memory memory) const;
  // Has copies go until so much is free, or on its way back to the system; `dooms` them where they are held. Whether
  // that is free.
  bool MakeRoom(Memory memory, int64_t bytes, bool dooms, Actions& actions);
  void BeginRider(PolicyRider& rider, Actions& actions);
  const PolicyRider* ChooseSweep(PolicyRider& rider) const;
  JoinSituation SituationOf(const PolicyRider& rider, const PolicyRider& last) const;
  void UpdateWidest(const DeviceState& device);

  MemoryBudget& Budget(Memory memory) { return budgets_[Index(memory)]; }

  const PolicyOptions& options_;
  const absl::Duration& now_;
  std::vector<DeviceState>& devices_;
  std::vector<MemoryBudget>& budgets_;
  CopyStore& copies_;
  Sweeps& sweeps_;
  const std::vector<std::vector<int64_t>>& stored_bytes_;
  Room& room_;
  Idle& idle_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_ADMISSION_H_
