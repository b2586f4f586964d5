// Riders of the ResidencyManager: admission, acquiring and releasing leases, leaving.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/residency_manager.h"

namespace ditserve {

Rider::~Rider() { manager_->Leave(this); }

void Rider::Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) {
  manager_->Acquire(this, module, std::move(done));
}

void Rider::Cancel(const absl::Status& why) { manager_->Cancel(this, why); }

RiderAccount Rider::account() const { return manager_->AccountOf(this); }

absl::StatusOr<std::unique_ptr<Rider>> ResidencyManager::Join(ModelId model, const Profile& profile,
                                                              int64_t activation_bytes,
                                                              absl::AnyInvocable<void(absl::Status) &&> admitted) {
  auto rider = std::unique_ptr<Rider>(new Rider(this));
  {
    absl::MutexLock lock(&mutex_);
    RiderState& state = riders_.emplace_back();
    state.rider = rider.get();
    state.model = model;
    state.profile = profile.name;
    state.vram_limit_bytes = profile.vram_limit_bytes;
    state.routes = MakeRoutes(*models_[model].weights, profile, *device_, forms_);
    state.activation_bytes = activation_bytes;
    for (ModuleIndex i = 0; i < static_cast<ModuleIndex>(state.routes.size()); ++i) {
      state.window_bytes = std::max(state.window_bytes, CopyBytes(model, i, state.routes[i].compute));
    }
    state.admitted = std::move(admitted);
    state.joined = clock_->Now();
    const absl::Status fits = CheckFits(state);
    if (!fits.ok()) {
      riders_.pop_back();
      return fits;
    }
  }
  Advance();
  return rider;
}

absl::Status ResidencyManager::CheckFits(const RiderState& state) const {
  const int64_t budget = ledger_->Usage(Memory::kDevice).budget_bytes;
  if (state.activation_bytes > budget - state.window_bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat("the request takes ", state.activation_bytes, " bytes of device memory for activations and ",
                     state.window_bytes, " for the model's largest module; the device budget is ", budget, " bytes"));
  }
  int waiting = 0;
  for (const RiderState& other : riders_) waiting += !other.active && &other != &state;
  if (waiting >= options_.max_waiting) {
    return absl::ResourceExhaustedError(
        absl::StrCat(waiting, " requests are waiting already, the most the server lets wait: try again later"));
  }
  return absl::OkStatus();
}

void ResidencyManager::AdmitLocked(Deferred& deferred) {
  for (RiderState& state : riders_) {
    if (state.active || !state.ended.ok()) continue;
    if (!TryAdmitLocked(state, deferred)) return;  // In order of arrival.
  }
}

bool ResidencyManager::TryAdmitLocked(RiderState& state, Deferred& deferred) {
  int active = 0;
  int64_t activations = state.activation_bytes;
  int64_t window = state.window_bytes;
  for (const RiderState& other : riders_) {
    if (!other.active) continue;
    ++active;
    activations += other.activation_bytes;
    window = std::max(window, other.window_bytes);
  }
  const MemoryUsage usage = ledger_->Usage(Memory::kDevice);
  if (active >= options_.max_riders || activations > usage.budget_bytes - window) return false;
  std::optional<Reservation> reservation =
      ledger_->TryReserve(Memory::kDevice, MemoryKind::kActivations, state.activation_bytes);
  if (!reservation) {
    const int64_t missing = state.activation_bytes - (usage.budget_bytes - usage.total_bytes());
    if (EvictLocked(Memory::kDevice, missing, -1)) spares_.Discard(Memory::kDevice, missing, deferred.garbage);
    return false;
  }
  state.activations = *std::move(reservation);
  state.active = true;
  state.watermark = ledger_->BeginWatermark(Memory::kDevice);
  state.account.queue = clock_->Now() - state.joined;
  idle_since_.reset();
  int riders = 0;
  for (const RiderState& other : riders_) riders += other.active && other.model == state.model;
  for (RiderState& other : riders_) {
    if (other.active && other.model == state.model) {
      other.account.most_riders = std::max(other.account.most_riders, riders);
    }
  }
  deferred.posts.emplace_back(
      [admitted = std::move(state.admitted)]() mutable { std::move(admitted)(absl::OkStatus()); });
  return true;
}

void ResidencyManager::Acquire(const Rider* rider, ModuleIndex module,
                               absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) {
  std::optional<absl::StatusOr<Lease>> at_once;
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
      at_once.emplace(MakeLease(state, *copy));
    } else {
      state.pending = Acquisition{std::exchange(done, nullptr), clock_->Now()};
    }
  }
  if (at_once) {
    std::move(done)(*std::move(at_once));
  } else {
    Advance();
  }
}

Lease ResidencyManager::MakeLease(RiderState& state, Copy& copy) {
  ++copy.pins;
  const CopyForm& form = forms_.form(copy.form);
  const CopyLayout layout = LayoutOf(models_[state.model].weights->module(copy.module), form.dtype);
  std::vector<LeasedTensor> tensors;
  for (const int64_t offset : layout.offsets_bytes) tensors.push_back({copy.buffer.data() + offset, form.dtype});
  return Lease(std::move(tensors), [this, rider = state.rider, held = &copy] { Release(rider, held); });
}

void ResidencyManager::GrantLocked(RiderState& state, Copy& copy, Deferred& deferred) {
  state.account.stall += clock_->Now() - state.pending->since;
  deferred.posts.emplace_back([done = std::move(state.pending->done), lease = MakeLease(state, copy)]() mutable {
    std::move(done)(std::move(lease));
  });
  state.pending.reset();
}

void ResidencyManager::FailLocked(RiderState& state, const absl::Status& status, Deferred& deferred) {
  state.account.stall += clock_->Now() - state.pending->since;
  deferred.posts.emplace_back([done = std::move(state.pending->done), status]() mutable { std::move(done)(status); });
  state.pending.reset();
}

void ResidencyManager::Release(const Rider* rider, Copy* copy) {
  absl::StatusOr<std::unique_ptr<DeviceEvent>> operations = device_->RecordOperations();
  {
    absl::MutexLock lock(&mutex_);
    RiderState& state = StateOf(rider);
    if (operations.ok()) {
      copy->buffer.InUseUntil(*std::move(operations));
    } else {
      state.ended.Update(operations.status());
    }
    --copy->pins;
    copy->fresh = false;
    ++state.next;
    ++state.account.modules_done;
    DropUnlessWantedLocked(state.model, *copy);
  }
  Advance();
}

void ResidencyManager::Cancel(const Rider* rider, const absl::Status& why) {
  Deferred deferred;
  {
    absl::MutexLock lock(&mutex_);
    RiderState& state = StateOf(rider);
    if (!state.ended.ok()) return;
    state.ended = why;
    if (!state.active) {
      deferred.posts.emplace_back([admitted = std::move(state.admitted), why]() mutable { std::move(admitted)(why); });
    }
    if (state.pending) FailLocked(state, why, deferred);
  }
  Advance(std::move(deferred));
}

void ResidencyManager::Leave(const Rider* rider) {
  std::list<RiderState> left;  // Its reservation is given back when it is destroyed, before the next is admitted.
  {
    absl::MutexLock lock(&mutex_);
    const auto state =
        std::find_if(riders_.begin(), riders_.end(), [&](const RiderState& each) { return each.rider == rider; });
    if (state == riders_.end()) return;  // It was refused.
    left.splice(left.begin(), riders_, state);
    if (left.front().active) {
      ledger_->EndWatermark(left.front().watermark);
      ReleaseCopiesOf(left.front());
    }
    if (riders_.empty()) idle_since_ = clock_->Now();
  }
  left.clear();
  Advance();
}

void ResidencyManager::ReleaseCopiesOf(const RiderState& left) {
  const absl::Duration now = clock_->Now();
  for (Copy* copy : models_[left.model].copies.All()) {
    const Route& route = left.routes[copy->module];
    const Stop stop = {copy->tier, copy->form};
    const auto found = std::find(route.stops.begin(), route.stops.end(), stop);
    if (found != route.stops.end()) {
      const int index = static_cast<int>(found - route.stops.begin());
      if (index == route.rest) copy->rests = true;
      // A copy over the limit was there for one operation only.
      const bool limited = index == route.limited && left.vram_limit_bytes;
      if (!limited || DeviceUse() <= *left.vram_limit_bytes) copy->idle_since = now;
    }
    DropUnlessWantedLocked(left.model, *copy);
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
