#include "core/residency/policy/loads.h"

#include <algorithm>
#include <utility>

namespace ditserve {

Loads::Loads(PolicyState& state, Room& room)
    : options_(state.options),
      now_(state.now),
      leads_(state.leads),
      stored_bytes_(state.stored_bytes),
      devices_(state.devices),
      budgets_(state.budgets),
      copies_(state.copies),
      sweeps_(state.sweeps),
      room_(room) {}

bool Loads::StartNext(DeviceState& device, Actions& actions) {
  if (!HasSlot(device)) return false;
  claims_.clear();
  for (PolicyRider& rider : sweeps_.riders()) {
    if (!rider.rides() || rider.itinerary->device != device.memory || device.elder.rider == &rider) continue;
    // The first modules of a next lap would stand in the window where the last ones of this are to arrive.
    if (rider.behind && !rider.riding() && !HasAll(*rider.after)) continue;
    if (const std::optional<ModuleIndex> missing = NextMissing(rider)) claims_.push_back(ClaimFor(rider, *missing));
  }
  std::sort(claims_.begin(), claims_.end(), [](const Claim& a, const Claim& b) {
    if (a.urgent != b.urgent) return a.urgent;
    if (a.urgent && a.rider->since != b.rider->since) return a.rider->since < b.rider->since;
    if (a.next_use != b.next_use) return a.next_use < b.next_use;
    return a.rider->id < b.rider->id;
  });
  for (size_t i = 0; i < claims_.size(); ++i) {
    const Claim claim = claims_[i];
    // What comes free next is for whoever can't go on without it.
    if (i > 0 && claims_.front().urgent && !claim.urgent) return false;
    if (TryLoad(device, claim, actions)) return true;
  }
  return false;
}

bool Loads::HasAll(const PolicyRider& rider) {
  const Itinerary& itinerary = *rider.itinerary;
  return itinerary.computable.NextMissing(rider.next) == itinerary.modules();
}

std::optional<ModuleIndex> Loads::NextMissing(const PolicyRider& rider) const {
  const Itinerary& itinerary = *rider.itinerary;
  ModuleIndex counted = rider.next;
  int64_t ahead_bytes = 0;  // Of copies before the module in question that it has yet to use.
  for (ModuleIndex i = itinerary.computable.NextMissing(rider.next); i < itinerary.modules();
       i = itinerary.computable.NextMissing(i + 1)) {
    if (rider.load_error && i >= rider.load_error->first) return std::nullopt;
    if (rider.undecided && i >= *rider.undecided) return std::nullopt;
    bool loading = false;
    if (FindSource(itinerary, i, &loading) == nullptr && loading) continue;  // Read once: made from what arrives.
    if (!itinerary.limit_bytes) return i;
    for (; counted < i; ++counted) {
      const Copy* const copy = sweeps_.FindComputable(itinerary, counted);
      if (copy != nullptr && !copy->used) ahead_bytes += copy->bytes;
    }
    const int64_t allowance = std::max(Sweeps::kLimitedAheadModules * itinerary.widest_bytes - ahead_bytes,
                                       *itinerary.limit_bytes - room_.DeviceUse(itinerary.device));
    if (i > rider.next && itinerary.route(i).compute_bytes > allowance) return std::nullopt;
    return i;
  }
  return std::nullopt;
}

Loads::Claim Loads::ClaimFor(PolicyRider& rider, ModuleIndex module) {
  Claim claim = {&rider, module, sweeps_.SecondsUntil(rider, module), rider.pending && module == rider.next};
  for (const PolicyRider& other : sweeps_.riders()) {
    if (&other == &rider || !Sweeps::IsLed(rider, other, module)) continue;
    claim.urgent = false;
    claim.next_use = std::max(claim.next_use, sweeps_.SecondsUntil(other, module));
  }
  return claim;
}

bool Loads::TryLoad(DeviceState& device, const Claim& claim, Actions& actions) {
  const Itinerary& itinerary = *claim.rider->itinerary;
  const Route& route = itinerary.route(claim.module);
  bool loading = false;
  Copy* source = FindSource(itinerary, claim.module, &loading);
  // Where operations read a copy that may stay, there it goes.
  for (size_t i = 0; i < route.stops.size(); ++i) {
    const Stop& stop = route.stops[i];
    const CopyKey key = {itinerary.weights, claim.module, stop.form, itinerary.MemoryOf(stop.tier)};
    if (!itinerary.Computes(key) || !itinerary.MayStay(claim.module, static_cast<int>(i))) continue;
    const int64_t bytes = route.stop_bytes[i];
    if (!room_.Make(key.memory, bytes, room_.BytesFor(key.memory, claim.urgent), claim.next_use, Taking::kSpare, source,
                    /*insist=*/false, actions)) {
      continue;
    }
    Start(device, *claim.rider, claim.module, source, room_.Place(key, bytes, /*streams=*/false), actions);
    return true;
  }
  const int64_t bytes = route.compute_bytes;
  const auto make_room = [&](const Copy* spare) {
    const int64_t room = room_.BytesFor(device.memory, claim.urgent);
    return room_.Make(device.memory, bytes, room, claim.next_use, Taking::kSpare, spare, false, actions) ||
           (claim.urgent &&
            room_.Make(device.memory, bytes, room, claim.next_use, Taking::kAnything, spare, false, actions));
  };
  const MemoryBudget& budget = budgets_[Index(device.memory)];
  const bool enough_ahead = budget.streaming_bytes + bytes > Sweeps::kAheadModules * budget.widest_bytes;
  if (!claim.urgent && enough_ahead) return false;
  if (!make_room(source)) {
    // A source that stands in its module's way gives way itself; the next one is slower.
    if (!claim.urgent || source == nullptr || source->key.memory != device.memory || !make_room(nullptr)) return false;
    source = FindSource(itinerary, claim.module, &loading);
    if (source == nullptr && loading) return true;  // Read once: made from what arrives.
  }
  const CopyKey key = {itinerary.weights, claim.module, route.compute, device.memory};
  Copy& computable = room_.Place(key, bytes, /*streams=*/!room_.MayStay(key));  // (Another may keep it.)
  Start(device, *claim.rider, claim.module, source, computable, actions);
  return true;
}

Copy* Loads::FindSource(const Itinerary& itinerary, ModuleIndex module, bool* loading) const {
  const FormId form = itinerary.route(module).compute;
  Copy* best = nullptr;
  *loading = false;
  for (Copy* copy : copies_.Of(itinerary.weights, module)) {
    if (copy->key.memory != itinerary.device && !IsHost(copy->key.memory)) continue;
    if (copy->doomed || !leads_(copy->key.form, form)) continue;
    if (!copy->ready()) {
      *loading = true;
    } else if (best == nullptr || IsHost(best->key.memory)) {
      best = copy;
    }
  }
  return best;
}

void Loads::Start(DeviceState& device, PolicyRider& rider, ModuleIndex module, Copy* source, Copy& computable,
                  Actions& actions) {
  std::vector<Copy*> targets;
  Load load{device.memory, rider.id, source != nullptr ? Pin(*source) : Pin(), {}, computable.bytes};
  AddStops(rider, module, source, targets, actions);
  targets.push_back(&computable);
  for (const Copy* target : targets) load.targets.push_back(target->key);
  actions.push_back(StartLoad{next_load_, rider.itinerary->weights, module, device.memory, source, std::move(targets)});
  loads_.emplace(next_load_++, std::move(load));
  if (++device.loads == 1) device.estimates.moving_since = now_;
}

void Loads::SetReady(LoadId load) {
  Load& enqueued = loads_.at(load);
  for (const CopyKey& target : enqueued.targets) {
    Copy& copy = *copies_.Find(target);
    copies_.SetReady(copy);
    // Who took its memory would write it, for another device too, once this one is through with it.
    if (IsHost(target.memory) && !(target == enqueued.targets.back())) enqueued.read.emplace_back(copy);
  }
  const CopyKey& key = enqueued.targets.back();
  devices_[Index(enqueued.device) - 1].estimates.moved_bytes +=
      stored_bytes_[static_cast<size_t>(key.weights)][static_cast<size_t>(key.module)];
}

void Loads::Finish(LoadId load, Actions& actions) {
  Load finished = Remove(load);
  Copy* const source = finished.source.copy();
  finished.source = Pin();
  finished.read.clear();
  for (const CopyKey& target : finished.targets) {
    if (Copy* const copy = copies_.Find(target)) room_.DropUnlessWanted(*copy, actions);
  }
  if (source != nullptr) room_.DropUnlessWanted(*source, actions);
}

void Loads::TakeBack(LoadId load, Actions& actions) {
  Load failed = Remove(load);
  for (const CopyKey& target : failed.targets) room_.Drop(*copies_.Find(target), actions);
  Copy* const source = failed.source.copy();
  failed.source = Pin();
  if (source != nullptr) room_.DropUnlessWanted(*source, actions);
}

bool Loads::Has(WeightsId weights) const {
  return std::any_of(loads_.begin(), loads_.end(),
                     [weights](const auto& load) { return load.second.targets.front().weights == weights; });
}

Loads::Load Loads::Remove(LoadId load) {
  Load removed = std::move(loads_.at(load));
  loads_.erase(load);
  DeviceState& device = devices_[Index(removed.device) - 1];
  --device.loads;
  device.estimates.moving += now_ - std::exchange(device.estimates.moving_since, now_);
  return removed;
}

// Copies at stops on the way, where there is room for them; they never wait for it. They are needed again only in the
// next sweep.
void Loads::AddStops(PolicyRider& rider, ModuleIndex module, const Copy* source, std::vector<Copy*>& targets,
                     Actions& actions) {
  const Itinerary& itinerary = *rider.itinerary;
  const Route& route = itinerary.route(module);
  const double next_use =
      sweeps_.SecondsUntil(rider, module) + itinerary.modules_taken() * sweeps_.pace_seconds(itinerary);
  for (size_t i = 0; i < route.stops.size(); ++i) {
    const Stop& stop = route.stops[i];
    const CopyKey key = {itinerary.weights, module, stop.form, itinerary.MemoryOf(stop.tier)};
    if (!itinerary.MayStay(module, static_cast<int>(i)) || copies_.Find(key) != nullptr) continue;
    if (stop == Stop{Tier::kDevice, route.compute}) continue;  // Operations read a host copy in place.
    if (source != nullptr &&
        ((IsHost(key.memory) && !IsHost(source->key.memory)) || !leads_(source->key.form, stop.form))) {
      continue;
    }
    const int64_t bytes = route.stop_bytes[i];
    const bool limited = static_cast<int>(i) == route.limited && itinerary.limit_bytes;
    if (limited && room_.DeviceUse(itinerary.device) + bytes > *itinerary.limit_bytes) continue;
    const int64_t room = room_.BytesFor(key.memory, /*urgent=*/false);
    if (!room_.Make(key.memory, bytes, room, next_use, Taking::kSpare, source, /*insist=*/false, actions)) continue;
    targets.push_back(&room_.Place(key, bytes, /*streams=*/false));
  }
}

}  // namespace ditserve
