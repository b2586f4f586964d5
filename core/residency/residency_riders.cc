// Riders of the ResidencyManager: acquiring and releasing leases, leaving.
#include <algorithm>
#include <cassert>
#include <utility>

#include "core/base/status_macros.h"
#include "core/residency/residency_manager.h"

namespace ditserve {

Rider::~Rider() { manager_->Leave(state_); }

void Rider::Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) {
  manager_->Acquire(state_, module, std::move(done));
}

void Rider::Cancel(const absl::Status& why) { manager_->Cancel(state_, why); }

absl::StatusOr<absl::Span<std::byte>> Rider::TakeActivations() { return manager_->TakeActivations(state_); }

absl::StatusOr<std::unique_ptr<Rider>> Rider::JoinLap(std::vector<ModuleIndex> skips,
                                                      std::optional<ModuleIndex> undecided,
                                                      absl::AnyInvocable<void(absl::Status) &&> admitted) {
  return manager_->JoinLap(state_, skips, undecided, std::move(admitted));
}

RiderAccount Rider::account() const { return manager_->AccountOf(state_); }

int Rider::device() const { return state_->device; }

void ResidencyManager::Acquire(RiderState* rider, ModuleIndex module,
                               absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) {
  const ComputingDevice& on = devices_[static_cast<size_t>(rider->device)];
  std::optional<absl::StatusOr<Lease>> at_once;
  EventPtr ready;
  Deferred deferred;
  {
    const absl::MutexLock lock(&mutex_);
    rider->acquired = clock_->Now();
    absl::StatusOr<std::optional<Pin>> pin = policy_.Acquire(*rider->policy, module, rider->acquired, actions_);
    if (!pin.ok()) {
      at_once.emplace(pin.status());
    } else if (!*pin) {
      rider->acquisition = std::exchange(done, nullptr);
      const auto device = static_cast<size_t>(rider->device);
      if (leases_[device] == 0) paces_[device].Begin(rider->acquired, transfers_->transferred(*on.device));
    } else if (on.executor->HasBefore(TurnOf(*rider))) {
      rider->acquisition = std::exchange(done, nullptr);
      GrantLocked(*rider, **std::move(pin), deferred);  // After the others.
    } else {
      ready = holdings_[static_cast<size_t>((*pin)->copy()->id)]->buffer.ready();
      at_once.emplace(MakeLease(*rider, **std::move(pin)));
    }
    // Who waits may have to be looked after when nothing else happens.
    if (!at_once || !actions_.empty()) ApplyLocked(deferred);
  }
  if (at_once && at_once->ok() && ready != nullptr) {
    if (const absl::Status ordered = on.device->ComputeAfter(ready); !ordered.ok()) at_once.emplace(ordered);
  }
  if (at_once) std::move(done)(*std::move(at_once));
  Finish(std::move(deferred));
}

Lease ResidencyManager::MakeLease(RiderState& rider, Pin pin) {
  const auto device = static_cast<size_t>(rider.device);
  rider.leased = clock_->Now();
  TransferPace& pace = paces_[device];
  if (leases_[device]++ == 0 && pace.waits()) pace.End(rider.leased, transfers_->transferred(*devices_[device].device));
  const auto& tensors = holdings_[static_cast<size_t>(pin.copy()->id)]->tensors;
  // Two pointers: no more is held without an allocation.
  return Lease(tensors,
               [held = &rider, pin = std::move(pin)]() mutable { held->manager->Release(held, std::move(pin)); });
}

void ResidencyManager::Release(RiderState* rider, Pin pin) {
  Device* const device = devices_[static_cast<size_t>(rider->device)].device;
  absl::StatusOr<EventPtr> operations = device->RecordOperations();
  Deferred deferred;
  {
    const absl::MutexLock lock(&mutex_);
    const absl::Duration now = clock_->Now();
    if (operations.ok()) {
      if (*operations != nullptr) {
        assert(!IsHost(pin.copy()->key.memory));  // That several devices read.
        holdings_[static_cast<size_t>(pin.copy()->id)]->buffer.InUseUntil(*std::move(operations));
      }
    } else {
      policy_.Cancel(*rider->policy, operations.status(), now, actions_);
    }
    absl::Duration& computed_until = computed_until_[static_cast<size_t>(rider->device)];
    const absl::Duration took = now - std::max(rider->leased, computed_until);
    computed_until = now;
    --leases_[static_cast<size_t>(rider->device)];
    ++computed_[static_cast<size_t>(rider->device)];
    ++rider->account.modules_done;
    policy_.Release(*rider->policy, std::move(pin), took, now, actions_);
    ApplyLocked(deferred);
  }
  Finish(std::move(deferred));
}

void ResidencyManager::Cancel(RiderState* rider, const absl::Status& why) {
  Deferred deferred;
  {
    const absl::MutexLock lock(&mutex_);
    policy_.Cancel(*rider->policy, why, clock_->Now(), actions_);
    ApplyLocked(deferred);
  }
  Finish(std::move(deferred));
}

absl::StatusOr<absl::Span<std::byte>> ResidencyManager::TakeActivations(RiderState* rider) {
  Events before;
  absl::Span<std::byte> memory;
  {
    const absl::MutexLock lock(&mutex_);
    if (rider->memory.size_bytes() == 0) return memory;
    before = rider->memory.in_use_until();
    memory = {rider->memory.data(), static_cast<size_t>(rider->memory.size_bytes())};
  }
  for (const EventPtr& event : before) {
    DITSERVE_RETURN_IF_ERROR(devices_[static_cast<size_t>(rider->device)].device->ComputeAfter(event));
  }
  const absl::MutexLock lock(&mutex_);
  rider->computes = true;
  return memory;
}

absl::StatusOr<std::unique_ptr<Rider>> ResidencyManager::JoinLap(RiderState* before,
                                                                 const std::vector<ModuleIndex>& skips,
                                                                 std::optional<ModuleIndex> undecided,
                                                                 absl::AnyInvocable<void(absl::Status) &&> admitted) {
  std::unique_ptr<Rider> rider;
  Deferred deferred;
  {
    const absl::MutexLock lock(&mutex_);
    assert(before->next_lap == nullptr);
    std::vector<Route> routes = RoutesLocked(before->model, before->profile, before->device, forms_);
    for (const ModuleIndex module : skips) routes[static_cast<size_t>(module)] = Route();
    const absl::Duration now = clock_->Now();
    DITSERVE_ASSIGN_OR_RETURN(PolicyRider* const joined,
                              policy_.JoinLap(*before->policy, std::move(routes), undecided, now, actions_));
    RiderState& state = riders_.emplace_back();
    state.manager = this;
    state.policy = joined;
    state.model = before->model;
    state.profile = before->profile;
    state.device = before->device;
    state.admitted = std::move(admitted);
    state.joined = now;
    state.lap_before = before;
    before->next_lap = &state;
    states_[joined] = &state;
    rider.reset(new Rider(this, &state));
    ApplyLocked(deferred);
  }
  Finish(std::move(deferred));
  return rider;
}

void ResidencyManager::Leave(RiderState* rider) {
  Deferred deferred;
  std::list<RiderState> left;  // Its callbacks end without the mutex.
  const absl::StatusOr<EventPtr> operations = devices_[static_cast<size_t>(rider->device)].device->RecordOperations();
  {
    const absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(
        +[](bool* preparing) { return !*preparing; }, &rider->preparing));
    paces_[static_cast<size_t>(rider->device)].Drop();
    const auto state =
        std::find_if(riders_.begin(), riders_.end(), [&](const RiderState& each) { return &each == rider; });
    left.splice(left.begin(), riders_, state);
    if (rider->watermark) ledger_->EndWatermark(*rider->watermark);
    RiderState* const next = rider->next_lap;
    if (rider->lap_before != nullptr) rider->lap_before->next_lap = nullptr;
    int64_t lost_bytes = 0;
    if (next == nullptr) {
      lost_bytes = GiveBackLocked(*rider, operations.ok() ? *operations : nullptr);
    } else {
      next->lap_before = nullptr;
      next->activations = std::move(rider->activations);
      next->on_host = std::move(rider->on_host);
      next->memory = std::move(rider->memory);
      next->computes = rider->computes;
    }
    states_.erase(rider->policy);
    policy_.Leave(*rider->policy, clock_->Now(), actions_, lost_bytes, next == nullptr ? nullptr : next->policy);
    ApplyLocked(deferred);
  }
  left.clear();
  Finish(std::move(deferred));
}

int64_t ResidencyManager::GiveBackLocked(RiderState& rider, EventPtr operations) {
  Reservation activations = std::move(rider.activations);
  { const Reservation on_host = std::move(rider.on_host); }
  if (rider.memory.size_bytes() == 0) return 0;  // It is the host's.
  const int64_t lost_bytes = rider.memory.lost_bytes();
  { const Reservation lost = activations.Split(lost_bytes); }
  if (rider.computes) rider.memory.InUseUntil(std::move(operations));
  { const Buffer ended = std::move(rider.memory); }
  activations.SetKind(MemoryKind::kStaging);
  cached_[Index(DeviceMemory(rider.device))].Merge(std::move(activations));
  return lost_bytes;
}

RiderAccount ResidencyManager::AccountOf(const RiderState* rider) const {
  const absl::MutexLock lock(&mutex_);
  RiderAccount account = rider->account;
  if (rider->watermark) account.peak_device_bytes = ledger_->Watermark(*rider->watermark);
  return account;
}

}  // namespace ditserve
