// Riders of the ResidencyManager: acquiring and releasing leases, leaving.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/residency/residency_manager.h"

namespace ditserve {

Rider::~Rider() { manager_->Leave(this); }

void Rider::Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) {
  manager_->Acquire(this, module, std::move(done));
}

void Rider::Cancel(const absl::Status& why) { manager_->Cancel(this, why); }

RiderAccount Rider::account() const { return manager_->AccountOf(this); }

void ResidencyManager::Acquire(const Rider* rider, ModuleIndex module,
                               absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) {
  std::optional<absl::StatusOr<Lease>> at_once;
  Deferred deferred;
  {
    absl::MutexLock lock(&mutex_);
    RiderState& state = StateOf(rider);
    state.next = module;
    Copy* const copy = FindComputable(state, module);
    if (!state.ended.ok()) {
      at_once.emplace(state.ended);
    } else if (const auto error = state.load_errors.find(module); error != state.load_errors.end()) {
      at_once.emplace(error->second);
    } else if (copy != nullptr && copy->ready) {
      if (!executor_->HasBefore(TurnOf(state))) {
        at_once.emplace(MakeLease(state, *copy));
      } else {
        state.pending = Acquisition{std::exchange(done, nullptr), clock_->Now()};
        GrantLocked(state, *copy, deferred);  // After the others.
      }
    } else {
      state.pending = Acquisition{std::exchange(done, nullptr), clock_->Now()};
    }
  }
  if (at_once) {
    std::move(done)(*std::move(at_once));
  } else {
    Advance(std::move(deferred));
  }
}

Lease ResidencyManager::MakeLease(RiderState& state, Copy& copy) {
  ++copy.pins;
  state.leased = clock_->Now();
  const CopyForm& form = forms_.form(copy.form);
  const CopyLayout layout = LayoutOf(models_[state.model].weights->module(copy.module), form.dtype,
                                     device_->IsInHostMemory(copy.room.buffer.memory()));
  std::vector<LeasedTensor> tensors;
  for (const int64_t offset : layout.offsets_bytes) tensors.push_back({copy.room.buffer.data() + offset, form.dtype});
  return Lease(std::move(tensors), [this, rider = state.rider, held = &copy] { Release(rider, held); });
}

void ResidencyManager::GrantLocked(RiderState& state, Copy& copy, Deferred& deferred) {
  state.account.stall += clock_->Now() - state.pending->since;
  Executor::Work grant = [done = std::move(state.pending->done), lease = MakeLease(state, copy)]() mutable {
    std::move(done)(std::move(lease));
  };
  deferred.posts.emplace_back(std::move(grant), TurnOf(state));
  state.pending.reset();
}

void ResidencyManager::FailLocked(RiderState& state, const absl::Status& status, Deferred& deferred) {
  state.account.stall += clock_->Now() - state.pending->since;
  Executor::Work fail = [done = std::move(state.pending->done), status]() mutable { std::move(done)(status); };
  deferred.posts.emplace_back(std::move(fail), Turn{});
  state.pending.reset();
}

void ResidencyManager::Release(const Rider* rider, Copy* copy) {
  absl::StatusOr<EventPtr> operations = device_->RecordOperations();
  Deferred deferred;
  {
    absl::MutexLock lock(&mutex_);
    RiderState& state = StateOf(rider);
    if (operations.ok()) {
      copy->room.buffer.InUseUntil(*std::move(operations));
    } else {
      state.ended.Update(operations.status());
    }
    const absl::Duration now = clock_->Now();
    const absl::Duration took = now - std::max(state.leased, computed_until_);
    computed_until_ = now;
    state.attained += took;
    state.computing += took;
    --copy->pins;
    copy->fresh = false;
    ++state.next;
    ++state.account.modules_done;
    DropUnlessWantedLocked(state.model, *copy, deferred);
  }
  Advance(std::move(deferred));
}

void ResidencyManager::Cancel(const Rider* rider, const absl::Status& why) {
  Deferred deferred;
  {
    absl::MutexLock lock(&mutex_);
    RiderState& state = StateOf(rider);
    if (!state.ended.ok()) return;
    state.ended = why;
    if (state.admitted) {
      RefuseLocked(state, why, deferred);
    }
    if (state.pending) FailLocked(state, why, deferred);
  }
  Advance(std::move(deferred));
}

void ResidencyManager::Leave(const Rider* rider) {
  Deferred deferred;
  std::list<RiderState> left;  // Its reservation is given back when it is destroyed, before the next is admitted.
  {
    absl::MutexLock lock(&mutex_);
    const auto state =
        std::find_if(riders_.begin(), riders_.end(), [&](const RiderState& each) { return each.rider == rider; });
    if (state == riders_.end()) return;  // It was refused.
    left.splice(left.begin(), riders_, state);
    RiderState& gone = left.front();
    PlanLocked();
    if (gone.active) {
      ledger_->EndWatermark(gone.watermark);
      ReleaseCopiesOf(gone, deferred);
      LearnFrom(gone);
    }
    for (RiderState& next : riders_) {
      if (next.after == &gone) BeginLocked(next, deferred);
    }
    if (riders_.empty()) idle_since_ = clock_->Now();
  }
  left.clear();
  Advance(std::move(deferred));
}

void ResidencyManager::LearnFrom(const RiderState& left) {
  if (left.next < static_cast<ModuleIndex>(left.routes.size())) return;
  const double bytes = static_cast<double>(std::max<int64_t>(left.options.activation_bytes, 1));
  models_[left.model].computing_per_byte = absl::ToDoubleSeconds(left.computing) / bytes;
  usual_ride_ = clock_->Now() - left.begun;
}

void ResidencyManager::ReleaseCopiesOf(const RiderState& left, Deferred& deferred) {
  const absl::Duration now = clock_->Now();
  for (Copy* copy : models_[left.model].copies.All()) {
    const Route& route = left.routes[copy->module];
    const Stop stop = {copy->tier, copy->form};
    const auto found = std::find(route.stops.begin(), route.stops.end(), stop);
    if (found != route.stops.end() && !copy->room.in_window) {  // The window is for those who ride.
      const int index = static_cast<int>(found - route.stops.begin());
      if (index == route.rest) copy->rests = true;
      // A copy over the limit was there for one operation only.
      const bool limited = index == route.limited && left.profile.vram_limit_bytes;
      if (!limited || DeviceUse() <= *left.profile.vram_limit_bytes) copy->idle_since = now;
    }
    DropUnlessWantedLocked(left.model, *copy, deferred);
  }
}

RiderAccount ResidencyManager::AccountOf(const Rider* rider) const {
  absl::MutexLock lock(&mutex_);
  const RiderState& state = StateOf(rider);
  RiderAccount account = state.account;
  if (state.active) account.peak_device_bytes = ledger_->Watermark(state.watermark);
  return account;
}

ResidencyManager::RiderState& ResidencyManager::StateOf(const Rider* rider) {
  return *std::find_if(riders_.begin(), riders_.end(), [&](const RiderState& each) { return each.rider == rider; });
}

const ResidencyManager::RiderState& ResidencyManager::StateOf(const Rider* rider) const {
  return *std::find_if(riders_.begin(), riders_.end(), [&](const RiderState& each) { return each.rider == rider; });
}

}  // namespace ditserve
