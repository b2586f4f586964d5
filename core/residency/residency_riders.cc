// Riders of the ResidencyManager: acquiring and releasing leases, leaving.
#include <algorithm>
#include <cassert>
#include <utility>

#include "core/residency/residency_manager.h"

namespace ditserve {

Rider::~Rider() { manager_->Leave(state_); }

void Rider::Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) {
  manager_->Acquire(state_, module, std::move(done));
}

void Rider::Cancel(const absl::Status& why) { manager_->Cancel(state_, why); }

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
      if (leases_[device] == 0) paces_[device].Begin(rider->acquired, transfers_->read(*on.device));
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
  if (leases_[device]++ == 0) paces_[device].End(rider.leased, transfers_->read(*devices_[device].device));
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

void ResidencyManager::Leave(RiderState* rider) {
  Deferred deferred;
  std::list<RiderState> left;  // Its callbacks end without the mutex.
  {
    const absl::MutexLock lock(&mutex_);
    paces_[static_cast<size_t>(rider->device)].Drop();
    const auto state =
        std::find_if(riders_.begin(), riders_.end(), [&](const RiderState& each) { return &each == rider; });
    left.splice(left.begin(), riders_, state);
    if (rider->watermark) ledger_->EndWatermark(*rider->watermark);
    { const Reservation activations = std::move(rider->activations); }
    states_.erase(rider->policy);
    policy_.Leave(*rider->policy, clock_->Now(), actions_);
    ApplyLocked(deferred);
  }
  left.clear();
  Finish(std::move(deferred));
}

RiderAccount ResidencyManager::AccountOf(const RiderState* rider) const {
  const absl::MutexLock lock(&mutex_);
  RiderAccount account = rider->account;
  if (rider->watermark) account.peak_device_bytes = ledger_->Watermark(*rider->watermark);
  return account;
}

}  // namespace ditserve
