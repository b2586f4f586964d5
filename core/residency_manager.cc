#include "core/residency_manager.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"

namespace ditserve {
namespace {

// Enough that transfer threads find the next module's pieces while the last of this one are in flight.
constexpr int kMaxLoadsInFlight = 3;

// A limited rider has at most this many of its largest modules ahead of it: one that is computed, one that arrives.
constexpr int kStreamingWindows = 2;

Memory MemoryOf(Tier tier) { return tier == Tier::kDevice ? Memory::kDevice : Memory::kHost; }

bool IsStop(const Route& route, const Copy& copy) {
  return std::find(route.stops.begin(), route.stops.end(), Stop{copy.tier, copy.form}) != route.stops.end();
}

}  // namespace

ResidencyManager::ResidencyManager(const Options& options, Device* device, Ledger* ledger, TransferEngine* transfers,
                                   Executor* executor, const Clock* clock)
    : options_(options), device_(device), ledger_(ledger), transfers_(transfers), executor_(executor), clock_(clock) {}

ResidencyManager::~ResidencyManager() = default;

ModelId ResidencyManager::AddModel(std::unique_ptr<ModelWeights> weights) {
  absl::MutexLock lock(&mutex_);
  CopyTable copies(weights->size());
  models_.push_back({std::move(weights), std::move(copies)});
  return static_cast<ModelId>(models_.size()) - 1;
}

void ResidencyManager::Advance(Deferred deferred) {
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      AdmitLocked(deferred);
      LoadLocked(deferred);
    }
    for (Transfer& transfer : deferred.transfers) transfers_->Submit(std::move(transfer));
    for (Executor::Work& work : deferred.posts) executor_->Post(std::move(work));
    const bool freed = !deferred.garbage.empty();
    deferred = {};
    if (!freed) return;
  }
}

void ResidencyManager::LoadLocked(Deferred& deferred) {
  // What is in the garbage is still reserved: it is freed before the next load looks for room.
  while (loads_in_flight_ < kMaxLoadsInFlight && deferred.garbage.empty()) {
    RiderState* nearest = nullptr;
    ModuleIndex module = 0;
    int64_t distance = std::numeric_limits<int64_t>::max();
    for (RiderState& state : riders_) {
      if (!state.active || !state.ended.ok()) continue;
      const std::optional<ModuleIndex> missing = NextMissing(state);
      if (!missing || *missing - state.next >= distance) continue;
      nearest = &state;
      module = *missing;
      distance = module - state.next;
    }
    if (nearest == nullptr || !StartLoadLocked(*nearest, module, deferred)) return;
  }
}

std::optional<ModuleIndex> ResidencyManager::NextMissing(const RiderState& state) const {
  int64_t allowance = std::numeric_limits<int64_t>::max();
  if (state.vram_limit_bytes) {
    allowance = std::max(kStreamingWindows * state.window_bytes, *state.vram_limit_bytes - DeviceUse());
  }
  for (ModuleIndex i = state.next; i < static_cast<ModuleIndex>(state.routes.size()); ++i) {
    if (state.load_errors.contains(i)) return std::nullopt;
    if (const Copy* copy = FindComputable(state, i)) {
      if (copy->fresh) allowance -= copy->buffer.size_bytes();
      continue;
    }
    const Copy* source = FindSource(state, i);
    if (source != nullptr && !source->ready) continue;  // Read once; the other forms are made from what arrives.
    const int64_t bytes = CopyBytes(state.model, i, state.routes[i].compute);
    if (i > state.next && bytes > allowance) return std::nullopt;
    return i;
  }
  return std::nullopt;
}

bool ResidencyManager::StartLoadLocked(RiderState& state, ModuleIndex module, Deferred& deferred) {
  // A rider that waits may evict whatever nobody holds.
  const int64_t next_use = state.pending && module == state.next ? -1 : module - state.next;
  Copy* const source = FindSource(state, module);
  if (source != nullptr) ++source->pins;
  Copy* const computable = AddComputableLocked(state, module, next_use, deferred);
  if (computable == nullptr) {
    if (source != nullptr) --source->pins;
    return false;
  }
  Load load{source, AddStopsLocked(state, module, source, deferred)};
  load.targets.push_back(computable);
  deferred.transfers.push_back(TransferFor(state.model, module, std::move(load)));
  ++loads_in_flight_;
  EnforceLimitLocked(state);
  return true;
}

Copy* ResidencyManager::AddComputableLocked(const RiderState& state, ModuleIndex module, int64_t next_use,
                                            Deferred& deferred) {
  const Route& route = state.routes[module];
  const int64_t bytes = CopyBytes(state.model, module, route.compute);
  CopyTable& copies = models_[state.model].copies;
  const Stop in_host_memory = {Tier::kHost, route.compute};
  if (device_->computes_in_host_memory() &&
      std::find(route.stops.begin(), route.stops.end(), in_host_memory) != route.stops.end()) {
    std::optional<Buffer> room = MakeRoomLocked(Memory::kHost, bytes, next_use, deferred);
    if (room) return copies.Add(module, Tier::kHost, route.compute, *std::move(room));
  }
  std::optional<Buffer> room = MakeRoomLocked(Memory::kDevice, bytes, next_use, deferred);
  return room ? copies.Add(module, Tier::kDevice, route.compute, *std::move(room)) : nullptr;
}

std::vector<Copy*> ResidencyManager::AddStopsLocked(const RiderState& state, ModuleIndex module, const Copy* source,
                                                    Deferred& deferred) {
  const Route& route = state.routes[module];
  CopyTable& copies = models_[state.model].copies;
  // It is needed again only in the next sweep.
  const int64_t next_use = module - state.next + copies.size();
  std::vector<Copy*> added;
  for (size_t i = 0; i < route.stops.size(); ++i) {
    const Stop& stop = route.stops[i];
    if (copies.Find(module, stop.tier, stop.form) != nullptr) continue;
    if (stop == Stop{Tier::kDevice, route.compute}) continue;  // Operations read a host copy in place.
    if (source != nullptr && (stop.tier < source->tier || !Leads(*source, stop.form))) continue;
    const int64_t bytes = CopyBytes(state.model, module, stop.form);
    const bool limited = static_cast<int>(i) == route.limited && state.vram_limit_bytes;
    if (limited && DeviceUse() + bytes > *state.vram_limit_bytes) continue;
    std::optional<Buffer> room = MakeRoomLocked(MemoryOf(stop.tier), bytes, next_use, deferred);
    if (room) added.push_back(copies.Add(module, stop.tier, stop.form, *std::move(room)));
  }
  return added;
}

Transfer ResidencyManager::TransferFor(ModelId model, ModuleIndex module, Load load) {
  Transfer transfer;
  transfer.model = models_[model].weights.get();
  transfer.module = module;
  if (load.source != nullptr) transfer.source = {&load.source->buffer, forms_.form(load.source->form)};
  for (Copy* target : load.targets) transfer.targets.push_back({&target->buffer, forms_.form(target->form)});
  transfer.done = [this, model, module, load = std::move(load)](const absl::Status& status, TransferCost cost) {
    OnLoaded(model, module, load, status, cost);
  };
  return transfer;
}

void ResidencyManager::OnLoaded(ModelId model, ModuleIndex module, const Load& load, const absl::Status& status,
                                TransferCost cost) {
  Deferred deferred;
  {
    absl::MutexLock lock(&mutex_);
    --loads_in_flight_;
    if (status.ok()) {
      ArriveLocked(model, load, cost, deferred);
    } else {
      FailLoadLocked(model, module, load, status, deferred);
    }
    if (load.source != nullptr) {
      --load.source->pins;
      DropUnlessWantedLocked(model, *load.source);
    }
  }
  Advance(std::move(deferred));
}

void ResidencyManager::ArriveLocked(ModelId model, const Load& load, TransferCost cost, Deferred& deferred) {
  std::vector<RiderState*> users;
  Copy& computable = *load.targets.back();
  for (RiderState& state : riders_) {
    if (state.active && state.model == model && state.next <= computable.module && Computes(state, computable)) {
      users.push_back(&state);
    }
  }
  for (RiderState* state : users) {
    state->account.disk_read_bytes += cost.disk_read_bytes / static_cast<int64_t>(users.size());
    state->account.device_copy_bytes += cost.device_copy_bytes / static_cast<int64_t>(users.size());
  }
  for (Copy* target : load.targets) target->ready = true;
  for (RiderState* state : users) {
    if (state->pending && state->next == computable.module) GrantLocked(*state, computable, deferred);
  }
  for (Copy* target : load.targets) DropUnlessWantedLocked(model, *target);
}

void ResidencyManager::FailLoadLocked(ModelId model, ModuleIndex module, const Load& load, const absl::Status& status,
                                      Deferred& deferred) {
  for (RiderState& state : riders_) {
    if (!state.active || state.model != model || state.next > module || !Computes(state, *load.targets.back())) {
      continue;
    }
    if (state.pending && state.next == module) {
      FailLocked(state, status, deferred);
    } else {
      state.load_errors[module] = status;
    }
  }
  for (Copy* target : load.targets) deferred.garbage.push_back(models_[model].copies.Remove(*target));
}

Copy* ResidencyManager::FindComputable(const RiderState& state, ModuleIndex module) const {
  for (const auto& copy : models_[state.model].copies.Of(module)) {
    if (Computes(state, *copy)) return copy.get();
  }
  return nullptr;
}

Copy* ResidencyManager::FindSource(const RiderState& state, ModuleIndex module) const {
  const FormId form = state.routes[module].compute;
  Copy* best = nullptr;
  for (const auto& copy : models_[state.model].copies.Of(module)) {
    if (!Leads(*copy, form)) continue;
    // A ready copy before one that is on its way, a near one before a far one.
    if (best == nullptr || std::pair(copy->ready, copy->tier) > std::pair(best->ready, best->tier)) best = copy.get();
  }
  return best;
}

bool ResidencyManager::Leads(const Copy& copy, FormId form) const {
  const std::vector<Precision>& from = forms_.form(copy.form).precisions;
  const std::vector<Precision>& to = forms_.form(form).precisions;
  return std::equal(from.begin(), from.end(), to.begin(), to.end(),
                    [](const Precision& a, const Precision& b) { return a.IsPrefixOf(b); });
}

bool ResidencyManager::Computes(const RiderState& state, const Copy& copy) const {
  return copy.form == state.routes[copy.module].compute &&
         (copy.tier == Tier::kDevice || device_->computes_in_host_memory());
}

bool ResidencyManager::IsNeeded(ModelId model, const Copy& copy) const {
  return std::any_of(riders_.begin(), riders_.end(), [&](const RiderState& state) {
    return state.active && state.ended.ok() && state.model == model && state.next <= copy.module &&
           Computes(state, copy);
  });
}

bool ResidencyManager::IsKept(ModelId model, const Copy& copy) const {
  for (const RiderState& state : riders_) {
    if (!state.active || state.model != model) continue;
    const Route& route = state.routes[copy.module];
    for (size_t i = 0; i < route.stops.size(); ++i) {
      if (route.stops[i] != Stop{copy.tier, copy.form}) continue;
      const bool limited = static_cast<int>(i) == route.limited && state.vram_limit_bytes;
      if (!limited || DeviceUse() <= *state.vram_limit_bytes) return true;
    }
  }
  return false;
}

bool ResidencyManager::IsClaimed(ModelId model, const Copy& copy) const {
  return std::any_of(riders_.begin(), riders_.end(), [&](const RiderState& state) {
    return state.active && state.model == model && IsStop(state.routes[copy.module], copy);
  });
}

int64_t ResidencyManager::NextUse(ModelId model, const Copy& copy) const {
  const CopyTable& copies = models_[model].copies;
  int64_t nearest = std::numeric_limits<int64_t>::max();
  for (const RiderState& state : riders_) {
    if (!state.active || state.model != model) continue;
    if (!Computes(state, copy) && !IsStop(state.routes[copy.module], copy)) continue;
    const int64_t distance = copy.module - state.next;
    nearest = std::min(nearest, distance >= 0 ? distance : distance + copies.size());
  }
  // Without a rider, the next sweep begins at the first module.
  if (nearest == std::numeric_limits<int64_t>::max()) nearest = 2 * copies.size() + copy.module;
  // A copy behind a nearer one of the same module serves nobody while that one stays.
  const bool shadowed = copy.tier == Tier::kHost &&
                        std::any_of(copies.Of(copy.module).begin(), copies.Of(copy.module).end(),
                                    [](const auto& other) { return other->tier == Tier::kDevice && !other->fresh; });
  return shadowed ? nearest + int64_t{4} * copies.size() : nearest;
}

int64_t ResidencyManager::DeviceUse() const {
  const MemoryUsage usage = ledger_->Usage(Memory::kDevice);
  return usage.weights_bytes + usage.activations_bytes;
}

int64_t ResidencyManager::CopyBytes(ModelId model, ModuleIndex module, FormId form) const {
  return LayoutOf(models_[model].weights->module(module), forms_.form(form).dtype).size_bytes;
}

std::optional<Buffer> ResidencyManager::MakeRoomLocked(Memory memory, int64_t bytes, int64_t next_use,
                                                       Deferred& deferred) {
  if (std::optional<Buffer> spare = spares_.Take(memory, bytes)) return spare;
  if (std::optional<Reservation> reservation = ledger_->TryReserve(memory, MemoryKind::kWeights, bytes)) {
    return Buffer(device_, *std::move(reservation));
  }
  const MemoryUsage usage = ledger_->Usage(memory);
  const int64_t missing = bytes - (usage.budget_bytes - usage.total_bytes());
  if (!EvictLocked(memory, missing, next_use)) return std::nullopt;
  if (std::optional<Buffer> spare = spares_.Take(memory, bytes)) return spare;
  spares_.Discard(memory, missing, deferred.garbage);
  return std::nullopt;
}

bool ResidencyManager::EvictLocked(Memory memory, int64_t bytes, int64_t next_use) {
  struct Victim {
    int64_t next_use;
    Model* model;
    Copy* copy;
  };
  std::vector<Victim> victims;
  int64_t available = spares_.Bytes(memory);
  for (size_t i = 0; i < models_.size(); ++i) {
    for (Copy* copy : models_[i].copies.All()) {
      if (copy->buffer.memory() != memory || !IsEvictable(*copy)) continue;
      const int64_t distance = NextUse(static_cast<ModelId>(i), *copy);
      if (distance <= next_use) continue;
      victims.push_back({distance, &models_[i], copy});
      available += copy->buffer.size_bytes();
    }
  }
  if (available < bytes) return false;
  std::stable_sort(victims.begin(), victims.end(),
                   [](const Victim& a, const Victim& b) { return a.next_use > b.next_use; });
  for (const Victim& victim : victims) {
    if (spares_.Bytes(memory) >= bytes) break;
    spares_.Put(victim.model->copies.Remove(*victim.copy));
  }
  return true;
}

void ResidencyManager::EnforceLimitLocked(const RiderState& state) {
  if (!state.vram_limit_bytes || DeviceUse() <= *state.vram_limit_bytes) return;
  std::vector<std::pair<int64_t, Copy*>> held;
  for (Copy* copy : models_[state.model].copies.All()) {
    if (copy->tier == Tier::kDevice && IsEvictable(*copy)) held.emplace_back(-NextUse(state.model, *copy), copy);
  }
  std::sort(held.begin(), held.end());
  for (const auto& [next_use, copy] : held) {
    if (DeviceUse() <= *state.vram_limit_bytes) return;
    DropUnlessWantedLocked(state.model, *copy);
  }
}

void ResidencyManager::DropUnlessWantedLocked(ModelId model, Copy& copy) {
  if (!IsEvictable(copy) || copy.rests || IsNeeded(model, copy) || IsKept(model, copy)) return;
  if (copy.idle_since && !IsClaimed(model, copy)) return;  // Until ReleaseIdle.
  spares_.Put(models_[model].copies.Remove(copy));
}

absl::Duration ResidencyManager::ReleaseIdle() {
  const absl::Duration now = clock_->Now();
  absl::Duration next = now + options_.idle_release;
  Deferred deferred;
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
      DropUnlessWantedLocked(static_cast<ModelId>(i), *copy);
    }
  }
  if (idle_since_ && *idle_since_ + options_.idle_release <= now) spares_.DiscardAll(deferred.garbage);
  return next;
}

bool ResidencyManager::Loading() const {
  absl::MutexLock lock(&mutex_);
  return loads_in_flight_ > 0;
}

ResidencySnapshot ResidencyManager::Snapshot() const {
  ResidencySnapshot snapshot;
  absl::MutexLock lock(&mutex_);
  snapshot.device_name = device_->name();
  snapshot.device = ledger_->Usage(Memory::kDevice);
  snapshot.host = ledger_->Usage(Memory::kHost);
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
    snapshot.riders.push_back({models_[state.model].weights->name(), state.profile, state.account.modules_done,
                               static_cast<int>(state.routes.size())});
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
