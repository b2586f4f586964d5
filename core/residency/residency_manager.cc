#include "core/residency/residency_manager.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

// Enough that transfer threads find the next module's pieces while the last of this one are in flight.
constexpr int kMaxLoadsInFlight = 3;

}  // namespace

ResidencyManager::ResidencyManager(const Options& options, Device* device, Arena* host, Arena* of_device,
                                   Ledger* ledger, TransferEngine* transfers, Executor* executor, const Clock* clock)
    : options_(options),
      device_(device),
      host_(host),
      of_device_(of_device),
      ledger_(ledger),
      transfers_(transfers),
      executor_(executor),
      clock_(clock) {
  wanted_bytes_ = {ledger->Usage(Memory::kHost).wanted_bytes, ledger->Usage(Memory::kDevice).wanted_bytes};
}

ResidencyManager::~ResidencyManager() = default;

ModelId ResidencyManager::AddModel(std::unique_ptr<ModelWeights> weights) {
  absl::MutexLock lock(&mutex_);
  CopyTable copies(weights->size());
  models_.push_back({std::move(weights), std::move(copies)});
  return static_cast<ModelId>(models_.size()) - 1;
}

void ResidencyManager::Advance(Deferred deferred) {
  std::array<int64_t, 2> freed = {};  // By Memory.
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      for (size_t i = 0; i < freed.size(); ++i) leaving_bytes_[i] -= freed[i];
      const bool shrinks = ShrinkLocked(deferred);
      const bool admits = AdmitLocked(deferred);
      LoadLocked(/*urgent_only=*/shrinks || admits, deferred);
    }
    for (Transfer& transfer : deferred.transfers) transfers_->Submit(std::move(transfer));
    for (auto& [work, turn] : deferred.posts) executor_->Post(std::move(work), turn);
    const bool done = deferred.garbage.empty();
    freed = {};
    for (Room& room : deferred.garbage) {
      freed[Index(room.reservation.memory())] += room.reservation.bytes();
      Free(std::move(room));
    }
    deferred = {};
    if (done) return;
  }
}

void ResidencyManager::Free(Room room) const {
  Arena& arena = ArenaOf(room.reservation.memory());
  room.buffer = Buffer();
  arena.Trim(room.reservation.bytes()).Free();
}

void ResidencyManager::LoadLocked(bool urgent_only, Deferred& deferred) {
  bool started = true;
  // What is in the garbage is still reserved: it is freed before the next load looks for room.
  while (started && loads_in_flight_ < kMaxLoadsInFlight && deferred.garbage.empty()) {
    std::vector<Claim> claims;
    for (const RiderState& state : riders_) {
      if (!state.active || !state.ended.ok()) continue;
      const std::optional<ModuleIndex> missing = NextMissing(state);
      if (missing) claims.push_back(ClaimFor(state, *missing));
    }
    std::stable_sort(claims.begin(), claims.end(),
                     [](const Claim& a, const Claim& b) { return a.next_use < b.next_use; });
    started = false;
    for (auto claim = claims.begin(); claim != claims.end() && !started && deferred.garbage.empty(); ++claim) {
      if (urgent_only && claim->next_use >= 0) break;
      started = StartLoadLocked(*claim, deferred);
      // What comes free next is for whoever can't go on without it.
      if (!started && claim->next_use < 0) urgent_only = true;
    }
  }
}

std::optional<ModuleIndex> ResidencyManager::NextMissing(const RiderState& state) const {
  int64_t allowance = std::numeric_limits<int64_t>::max();
  if (state.profile.vram_limit_bytes) {
    allowance = std::max(kLimitedSegments * state.window_bytes, *state.profile.vram_limit_bytes - DeviceUse());
  }
  for (ModuleIndex i = state.next; i < static_cast<ModuleIndex>(state.routes.size()); ++i) {
    if (state.load_errors.contains(i)) return std::nullopt;
    if (const Copy* copy = FindComputable(state, i)) {
      if (copy->fresh) allowance -= copy->room.reservation.bytes();
      continue;
    }
    const Copy* source = FindSource(state, i);
    if (source != nullptr && !source->ready) continue;  // Read once; the other forms are made from what arrives.
    if (i > state.next && state.routes[i].compute_bytes > allowance) return std::nullopt;
    return i;
  }
  return std::nullopt;
}

bool ResidencyManager::StartLoadLocked(const Claim& claim, Deferred& deferred) {
  const RiderState& state = *claim.state;
  const ModuleIndex module = claim.module;
  Copy* const source = FindSource(state, module);
  if (source != nullptr) ++source->pins;
  Copy* const computable = AddComputableLocked(claim, deferred);
  if (computable == nullptr) {
    if (source != nullptr) --source->pins;
    return false;
  }
  Load load{source, AddStopsLocked(state, module, source, deferred)};
  load.targets.push_back(computable);
  deferred.transfers.push_back(TransferFor(state.model, module, std::move(load)));
  if (loads_in_flight_++ == 0) loading_since_ = clock_->Now();
  EnforceLimitLocked(state, deferred);
  return true;
}

Copy* ResidencyManager::AddComputableLocked(const Claim& claim, Deferred& deferred) {
  const RiderState& state = *claim.state;
  const Route& route = state.routes[claim.module];
  for (size_t i = 0; i < route.stops.size(); ++i) {
    const Stop& stop = route.stops[i];
    if (!IsOperand(route, stop) || !MayStay(state, claim.module, i)) continue;
    if (Copy* const copy = TryKeepLocked(stop, route.stop_bytes[i], claim, deferred)) return copy;
    if (IsLeaving(MemoryOf(stop.tier))) return nullptr;  // There is room once it is freed.
  }
  std::optional<Room> room = MakeWindowRoomLocked(route.compute_bytes, claim, deferred);
  if (!room) return nullptr;
  return models_[state.model].copies.Add(claim.module, Tier::kDevice, route.compute, *std::move(room));
}

Copy* ResidencyManager::TryKeepLocked(const Stop& stop, int64_t bytes, const Claim& claim, Deferred& deferred) {
  std::optional<Room> room = MakeRoomLocked(MemoryOf(stop.tier), bytes, claim, deferred);
  if (!room) return nullptr;
  return models_[claim.state->model].copies.Add(claim.module, stop.tier, stop.form, *std::move(room));
}

std::vector<Copy*> ResidencyManager::AddStopsLocked(const RiderState& state, ModuleIndex module, const Copy* source,
                                                    Deferred& deferred) {
  const Route& route = state.routes[module];
  CopyTable& copies = models_[state.model].copies;
  // It is needed again only in the next sweep.
  const Claim claim = {&state, module, Distance(state, module) + copies.size()};
  std::vector<Copy*> added;
  for (size_t i = 0; i < route.stops.size(); ++i) {
    const Stop& stop = route.stops[i];
    if (!MayStay(state, module, i) || copies.Find(module, stop.tier, stop.form) != nullptr) continue;
    if (stop == Stop{Tier::kDevice, route.compute}) continue;  // Operations read a host copy in place.
    if (source != nullptr && (stop.tier < source->tier || !Leads(*source, stop.form))) continue;
    const int64_t bytes = route.stop_bytes[i];
    const bool limited = static_cast<int>(i) == route.limited && state.profile.vram_limit_bytes;
    if (limited && DeviceUse() + bytes > *state.profile.vram_limit_bytes) continue;
    if (Copy* const copy = TryKeepLocked(stop, bytes, claim, deferred)) added.push_back(copy);
  }
  return added;
}

Transfer ResidencyManager::TransferFor(ModelId model, ModuleIndex module, Load load) {
  Transfer transfer;
  transfer.device = device_;
  transfer.model = models_[model].weights.get();
  transfer.module = module;
  if (load.source != nullptr) transfer.source = {&load.source->room.buffer, forms_.form(load.source->form)};
  for (Copy* target : load.targets) transfer.targets.push_back({&target->room.buffer, forms_.form(target->form)});
  const auto moved = std::make_shared<TransferCost>();
  transfer.enqueued = [moved](const absl::Status&, TransferCost cost) { *moved = cost; };
  transfer.done = [this, model, module, moved, load = std::move(load)](const absl::Status& status) {
    OnLoaded(model, module, load, status, *moved);
  };
  return transfer;
}

void ResidencyManager::OnLoaded(ModelId model, ModuleIndex module, const Load& load, const absl::Status& status,
                                TransferCost cost) {
  Deferred deferred;
  {
    absl::MutexLock lock(&mutex_);
    if (--loads_in_flight_ == 0) pace_.busy += clock_->Now() - loading_since_;
    if (status.ok()) {
      ArriveLocked(model, load, cost, deferred);
    } else {
      FailLoadLocked(model, module, load, status, deferred);
    }
    if (load.source != nullptr) {
      --load.source->pins;
      DropUnlessWantedLocked(model, *load.source, deferred);
    }
  }
  Advance(std::move(deferred));
}

void ResidencyManager::ArriveLocked(ModelId model, const Load& load, TransferCost cost, Deferred& deferred) {
  Copy& computable = *load.targets.back();
  const std::vector<RiderState*> users = UsersOf(model, computable);
  for (RiderState* state : users) {
    state->account.disk_read_bytes += cost.disk_read_bytes / static_cast<int64_t>(users.size());
    state->account.device_copy_bytes += cost.device_copy_bytes / static_cast<int64_t>(users.size());
  }
  moved_.disk_read_bytes += cost.disk_read_bytes;
  moved_.device_copy_bytes += cost.device_copy_bytes;
  pace_.stored_bytes += models_[model].weights->module(computable.module).stored_bytes;
  for (Copy* target : load.targets) target->ready = true;
  for (Copy* target : load.targets) {  // Others may compute with what is a stop on the way for these users.
    for (RiderState* state : UsersOf(model, *target)) {
      if (state->pending && state->next == target->module) GrantLocked(*state, *target, deferred);
    }
  }
  for (Copy* target : load.targets) DropUnlessWantedLocked(model, *target, deferred);
}

void ResidencyManager::FailLoadLocked(ModelId model, ModuleIndex module, const Load& load, const absl::Status& status,
                                      Deferred& deferred) {
  for (RiderState* state : UsersOf(model, *load.targets.back())) {
    if (state->pending && state->next == module) {
      FailLocked(*state, status, deferred);
    } else {
      state->load_errors[module] = status;
    }
  }
  for (Copy* target : load.targets) DropLocked(model, *target, deferred);
}

absl::Duration ResidencyManager::ReleaseIdle() {
  const absl::Duration now = clock_->Now();
  absl::Duration next = now + options_.idle_release;
  Deferred deferred;
  {
    absl::MutexLock lock(&mutex_);
    for (size_t i = 0; i < models_.size(); ++i) {
      for (Copy* copy : models_[i].copies.All()) {
        if (!copy->idle_since || copy->rests) continue;
        const absl::Duration due = *copy->idle_since + options_.idle_release;
        if (due > now) {
          next = std::min(next, due);
          continue;
        }
        copy->idle_since.reset();
        DropUnlessWantedLocked(static_cast<ModelId>(i), *copy, deferred);
      }
    }
    if (idle_since_ && *idle_since_ + options_.idle_release <= now) {
      RemoveWindowLocked(std::numeric_limits<int64_t>::max(), deferred);
    }
  }
  Advance(std::move(deferred));
  return next;
}

bool ResidencyManager::Loading() const {
  absl::MutexLock lock(&mutex_);
  return loads_in_flight_ > 0;
}

ResidencySnapshot ResidencyManager::Snapshot() const {
  ResidencySnapshot snapshot;
  absl::MutexLock lock(&mutex_);
  snapshot.time = clock_->Now();
  snapshot.device_name = device_->name();
  snapshot.device = ledger_->Usage(Memory::kDevice);
  snapshot.host = ledger_->Usage(Memory::kHost);
  snapshot.device.wanted_bytes = wanted_bytes_[Index(Memory::kDevice)];
  snapshot.host.wanted_bytes = wanted_bytes_[Index(Memory::kHost)];
  snapshot.transfers = {{Tier::kDisk, Tier::kHost, moved_.disk_read_bytes},
                        {Tier::kHost, Tier::kDevice, moved_.device_copy_bytes}};
  snapshot.evictions = {evictions_[Index(Memory::kDevice)], evictions_[Index(Memory::kHost)]};
  for (const Model& model : models_) {
    TierBytes bytes{model.weights->name()};
    for (ModuleIndex i = 0; i < model.copies.size(); ++i) {
      Tier nearest = Tier::kDisk;
      for (const auto& copy : model.copies.Of(i)) {
        if (copy->ready) nearest = std::max(nearest, copy->tier);
      }
      const int64_t stored = model.weights->module(i).stored_bytes;
      (nearest == Tier::kDevice ? bytes.device_bytes
       : nearest == Tier::kHost ? bytes.host_bytes
                                : bytes.disk_bytes) += stored;
    }
    snapshot.models.push_back(std::move(bytes));
  }
  for (const RiderState& state : riders_) {
    if (!state.active) {
      ++snapshot.waiting;
      continue;
    }
    RiderInfo& rider = snapshot.riders.emplace_back();
    rider.model = models_[state.model].weights->name();
    rider.profile = state.profile.name;
    rider.modules_done = state.account.modules_done;
    rider.modules_total = static_cast<int>(state.routes.size());
    rider.priority = state.options.priority;
    rider.waiting = state.after != nullptr;
    rider.stall = state.account.stall;
    if (state.pending) rider.stall += clock_->Now() - state.pending->since;
  }
  return snapshot;
}

std::vector<std::vector<Tier>> ResidencyManager::ModuleTiers(ModelId model) const {
  absl::MutexLock lock(&mutex_);
  const CopyTable& copies = models_[model].copies;
  std::vector<std::vector<Tier>> tiers(copies.size());
  for (ModuleIndex i = 0; i < copies.size(); ++i) {
    for (const Tier tier : {Tier::kDevice, Tier::kHost}) {
      const auto& held = copies.Of(i);
      if (std::any_of(held.begin(), held.end(), [&](const auto& c) { return c->ready && c->tier == tier; })) {
        tiers[i].push_back(tier);
      }
    }
    tiers[i].push_back(Tier::kDisk);
  }
  return tiers;
}

}  // namespace ditserve
