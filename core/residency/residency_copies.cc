// Copies of the ResidencyManager: what they are worth, and who gives way to whom.
#include <algorithm>
#include <limits>
#include <utility>

#include "core/residency/residency_manager.h"

namespace ditserve {
namespace {

// Riders that can live off the same copies stay together: one that is ahead takes no room that one behind could use
// sooner. But it is not held back by a slower one: only until that one has computed for so many modules more.
constexpr int kPatienceModules = 8;

// Less than any next use.
constexpr int64_t kAnyUse = -1;

bool IsStop(const Route& route, const Copy& copy) {
  return std::find(route.stops.begin(), route.stops.end(), Stop{copy.tier, copy.form}) != route.stops.end();
}

}  // namespace

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

bool ResidencyManager::IsOperand(const Route& route, const Stop& stop) const {
  return stop.form == route.compute && (stop.tier == Tier::kDevice || device_->computes_in_host_memory());
}

bool ResidencyManager::Needs(const RiderState& state, ModelId model, const Copy& copy) const {
  return state.active && state.ended.ok() && state.model == model && state.next <= copy.module && Computes(state, copy);
}

std::vector<ResidencyManager::RiderState*> ResidencyManager::UsersOf(ModelId model, const Copy& copy) {
  std::vector<RiderState*> riding, waiting;
  for (RiderState& state : riders_) {
    if (Needs(state, model, copy)) (state.after == nullptr ? riding : waiting).push_back(&state);
  }
  return riding.empty() ? waiting : riding;
}

bool ResidencyManager::IsNeeded(ModelId model, const Copy& copy) const {
  return std::any_of(riders_.begin(), riders_.end(), [&](const RiderState& state) {
    return Needs(state, model, copy) && (state.after == nullptr || copy.fresh);
  });
}

bool ResidencyManager::IsKept(ModelId model, const Copy& copy) const {
  for (const RiderState& state : riders_) {
    if (!state.active || state.model != model) continue;
    const Route& route = state.routes[copy.module];
    for (size_t i = 0; i < route.stops.size(); ++i) {
      if (route.stops[i] != Stop{copy.tier, copy.form} || !MayStay(state, copy.module, i)) continue;
      const bool limited = static_cast<int>(i) == route.limited && state.profile.vram_limit_bytes;
      if (!limited || DeviceUse() <= *state.profile.vram_limit_bytes) return true;
    }
  }
  return false;
}

bool ResidencyManager::MayStay(const RiderState& state, ModuleIndex module, size_t stop) {
  return !state.kept.empty() && (state.kept[module] >> stop & 1) != 0;
}

bool ResidencyManager::IsClaimed(ModelId model, const Copy& copy) const {
  return std::any_of(riders_.begin(), riders_.end(), [&](const RiderState& state) {
    return state.active && state.model == model && IsStop(state.routes[copy.module], copy);
  });
}

int64_t ResidencyManager::Distance(const RiderState& state, ModuleIndex module) const {
  const auto modules = static_cast<int64_t>(state.routes.size());
  const int64_t ahead = module - state.next;
  const int64_t until_begun = state.after != nullptr ? modules - state.after->next : 0;
  return until_begun + (ahead >= 0 ? ahead : ahead + modules);
}

int64_t ResidencyManager::NextUse(ModelId model, const Copy& copy) const {
  const CopyTable& copies = models_[model].copies;
  int64_t nearest = std::numeric_limits<int64_t>::max();
  for (const RiderState& state : riders_) {
    if (!state.active || state.model != model) continue;
    if (!Computes(state, copy) && !IsStop(state.routes[copy.module], copy)) continue;
    nearest = std::min(nearest, Distance(state, copy.module));
  }
  // Without a rider all are as far; then what stays is to be spread evenly.
  if (nearest == std::numeric_limits<int64_t>::max()) {
    nearest = static_cast<int64_t>((2 + KeepRank(copy.module)) * copies.size());
  }
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

bool ResidencyManager::IsLed(const RiderState& state, const RiderState& behind, ModuleIndex module) const {
  if (!behind.active || behind.after != nullptr || !behind.ended.ok() || behind.model != state.model) return false;
  if (behind.next >= state.next || behind.routes[module].compute != state.routes[module].compute) return false;
  if (behind.options.priority > state.options.priority) return false;
  return behind.attained - state.attained <= kPatienceModules * behind.computing / std::max(behind.next, 1);
}

ResidencyManager::Claim ResidencyManager::ClaimFor(const RiderState& state, ModuleIndex module) const {
  Claim claim = {&state, module, Distance(state, module)};
  bool last = true;
  for (const RiderState& other : riders_) {
    if (!IsLed(state, other, module)) continue;
    last = false;
    claim.next_use = std::max(claim.next_use, Distance(other, module));
  }
  // The last of those that wait may take whatever nobody holds: so one of them always goes on.
  if (last && state.pending && module == state.next) claim.next_use = -1;
  return claim;
}

std::vector<ResidencyManager::Victim> ResidencyManager::VictimsLocked(Memory memory, bool in_window, int64_t next_use) {
  std::vector<Victim> victims;
  for (size_t i = 0; i < models_.size(); ++i) {
    const auto model = static_cast<ModelId>(i);
    for (Copy* copy : models_[i].copies.All()) {
      if (copy->room.reservation.memory() != memory || !IsEvictable(*copy) || copy->room.in_window != in_window)
        continue;
      const int64_t distance = NextUse(model, *copy);
      if (distance > next_use) victims.push_back({IsKept(model, *copy), distance, model, copy});
    }
  }
  std::stable_sort(victims.begin(), victims.end(), [](const Victim& a, const Victim& b) {
    return std::pair(a.kept, -a.next_use) < std::pair(b.kept, -b.next_use);
  });
  return victims;
}

std::optional<Room> ResidencyManager::MakeRoomLocked(Memory memory, int64_t bytes, const Claim& claim,
                                                     Deferred& deferred) {
  if (std::optional<Reservation> reservation = ledger_->TryReserve(memory, MemoryKind::kWeights, bytes)) {
    return Room{*std::move(reservation), ArenaOf(memory).Take(bytes)};
  }
  YieldLocked(memory, bytes, claim, deferred);
  return std::nullopt;
}

int64_t ResidencyManager::MissingBytes(Memory memory, int64_t bytes, int64_t budget_bytes) const {
  return bytes + ledger_->Usage(memory).total_bytes() - leaving_bytes_[Index(memory)] - budget_bytes;
}

void ResidencyManager::YieldLocked(Memory memory, int64_t bytes, const Claim& claim, Deferred& deferred) {
  int64_t missing = MissingBytes(memory, bytes, ledger_->Usage(memory).wanted_bytes);
  if (memory == Memory::kDevice && !streams_) missing -= RemoveWindowLocked(missing, deferred);
  std::vector<Victim> victims = VictimsLocked(memory, /*in_window=*/false, claim.next_use);
  victims.erase(std::find_if(victims.begin(), victims.end(), [](const Victim& victim) { return victim.kept; }),
                victims.end());
  int64_t available = 0;
  for (const Victim& victim : victims) available += victim.copy->room.reservation.bytes();
  if (available >= missing) EvictLocked(victims, missing, deferred);
}

std::optional<Room> ResidencyManager::MakeWindowRoomLocked(int64_t bytes, const Claim& claim, Deferred& deferred) {
  const auto take = [&]() -> std::optional<Room> {
    std::optional<Reservation> part = window_.Take(bytes);
    if (!part) return std::nullopt;
    return Room{*std::move(part), of_device_->Take(bytes), /*in_window=*/true};
  };
  if (std::optional<Room> part = take()) return part;
  const int64_t segment = std::max(bytes, DemandOf().window_bytes);
  if (window_.SegmentsOf(segment) < kWindowSegments) {
    const bool urgent = claim.next_use < 0 && window_.SegmentsOf(bytes) == 0;  // It could not go on without.
    if (GrowWindowLocked(segment, urgent, claim, deferred)) return take();
    if (IsLeaving(Memory::kDevice)) return std::nullopt;
  }
  const std::vector<Victim> victims = VictimsLocked(Memory::kDevice, /*in_window=*/true, claim.next_use);
  std::vector<int64_t> parts;
  for (const Victim& victim : victims) parts.push_back(victim.copy->room.reservation.bytes());
  for (size_t i = 0, count = window_.PartsInTheWay(bytes, parts); i < count; ++i) {
    DropLocked(victims[i].model, *victims[i].copy, deferred);
    ++evictions_[Index(Memory::kDevice)];
  }
  return take();
}

bool ResidencyManager::GrowWindowLocked(int64_t bytes, bool urgent, const Claim& claim, Deferred& deferred) {
  if (std::optional<Reservation> reservation = ledger_->TryReserve(Memory::kDevice, MemoryKind::kStaging, bytes)) {
    window_.Add(*std::move(reservation));
    return true;
  }
  if (urgent) {
    const int64_t budget = ledger_->Usage(Memory::kDevice).wanted_bytes;
    FreeLocked(Memory::kDevice, MissingBytes(Memory::kDevice, bytes, budget), deferred);
  } else {
    YieldLocked(Memory::kDevice, bytes, claim, deferred);
  }
  return false;
}

int64_t ResidencyManager::EvictLocked(const std::vector<Victim>& victims, int64_t bytes, Deferred& deferred) {
  int64_t freed = 0;
  for (const Victim& victim : victims) {
    if (freed >= bytes) break;
    freed += victim.copy->room.reservation.bytes();
    ++evictions_[Index(victim.copy->room.reservation.memory())];
    DropLocked(victim.model, *victim.copy, deferred);
  }
  return freed;
}

void ResidencyManager::FreeLocked(Memory memory, int64_t bytes, Deferred& deferred) {
  const bool idle = std::none_of(riders_.begin(), riders_.end(), [](const auto& state) { return state.active; });
  if (memory == Memory::kDevice && idle) bytes -= RemoveWindowLocked(bytes, deferred);
  const std::vector<Victim> victims = VictimsLocked(memory, /*in_window=*/false, kAnyUse);
  const auto kept = std::find_if(victims.begin(), victims.end(), [](const Victim& victim) { return victim.kept; });
  bytes -= EvictLocked({victims.begin(), kept}, bytes, deferred);
  if (memory == Memory::kDevice && bytes > 0) {
    for (const Victim& victim : VictimsLocked(memory, /*in_window=*/true, kAnyUse)) {
      DropLocked(victim.model, *victim.copy, deferred);
      ++evictions_[Index(memory)];
    }
    bytes -= RemoveWindowLocked(bytes, deferred);
  }
  EvictLocked({kept, victims.end()}, bytes, deferred);
}

int64_t ResidencyManager::RemoveWindowLocked(int64_t bytes, Deferred& deferred) {
  int64_t removed = 0;
  while (removed < bytes) {
    std::optional<Reservation> segment = window_.RemoveFree();
    if (!segment) break;
    removed += segment->bytes();
    DiscardLocked({*std::move(segment)}, deferred);
  }
  return removed;
}

void ResidencyManager::DiscardLocked(Room room, Deferred& deferred) {
  room.reservation.SetKind(MemoryKind::kStaging);
  leaving_bytes_[Index(room.reservation.memory())] += room.reservation.bytes();
  deferred.garbage.push_back(std::move(room));
}

void ResidencyManager::EnforceLimitLocked(const RiderState& state, Deferred& deferred) {
  if (!state.profile.vram_limit_bytes || DeviceUse() <= *state.profile.vram_limit_bytes) return;
  std::vector<std::pair<int64_t, Copy*>> held;
  for (Copy* copy : models_[state.model].copies.All()) {
    if (copy->tier == Tier::kDevice && IsEvictable(*copy)) held.emplace_back(-NextUse(state.model, *copy), copy);
  }
  std::sort(held.begin(), held.end());
  for (const auto& [next_use, copy] : held) {
    if (DeviceUse() <= *state.profile.vram_limit_bytes) return;
    DropUnlessWantedLocked(state.model, *copy, deferred);
  }
}

void ResidencyManager::DropLocked(ModelId model, Copy& copy, Deferred& deferred) {
  Room room = models_[model].copies.Remove(copy);
  if (!room.in_window) return DiscardLocked(std::move(room), deferred);
  room.buffer = Buffer();
  window_.Put(std::move(room.reservation));
  // Segments that are too small for those who ride now are left over from others.
  if (window_.segments() > kWindowSegments) RemoveWindowLocked(1, deferred);
}

void ResidencyManager::DropUnlessWantedLocked(ModelId model, Copy& copy, Deferred& deferred) {
  if (!IsEvictable(copy) || copy.rests || IsNeeded(model, copy) || IsKept(model, copy)) return;
  if (copy.idle_since && !IsClaimed(model, copy)) return;  // Until ReleaseIdle.
  DropLocked(model, copy, deferred);
}

}  // namespace ditserve
