// Loads: what is missing and needed soonest, as far as there is room for it.
#include <algorithm>
#include <limits>
#include <utility>

#include "core/residency/policy.h"

namespace ditserve {

bool Policy::LoadNext(Device& device, Actions& actions) {
  if (device.loads >= options_.max_loads) return false;
  claims_.clear();
  for (PolicyRider& rider : sweeps_.riders()) {
    if (!rider.rides() || rider.itinerary->device != device.memory || device.elder.rider == &rider) continue;
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

std::optional<ModuleIndex> Policy::NextMissing(const PolicyRider& rider) const {
  const Itinerary& itinerary = *rider.itinerary;
  ModuleIndex counted = rider.next;
  int64_t ahead_bytes = 0;  // Of copies before the module in question that it has yet to use.
  for (ModuleIndex i = itinerary.computable.NextMissing(rider.next); i < itinerary.modules();
       i = itinerary.computable.NextMissing(i + 1)) {
    if (rider.load_error && i >= rider.load_error->first) return std::nullopt;
    bool loading = false;
    if (FindSource(itinerary, i, &loading) == nullptr && loading) continue;  // Read once: made from what arrives.
    if (!itinerary.limit_bytes) return i;
    for (; counted < i; ++counted) {
      const Copy* const copy = sweeps_.FindComputable(itinerary, counted);
      if (copy != nullptr && !copy->used) ahead_bytes += copy->bytes;
    }
    const int64_t allowance = std::max(Sweeps::kLimitedAheadModules * itinerary.widest_bytes - ahead_bytes,
                                       *itinerary.limit_bytes - DeviceUse(itinerary.device));
    if (i > rider.next && itinerary.route(i).compute_bytes > allowance) return std::nullopt;
    return i;
  }
  return std::nullopt;
}

Policy::Claim Policy::ClaimFor(PolicyRider& rider, ModuleIndex module) {
  Claim claim = {&rider, module, sweeps_.SecondsUntil(rider, module), rider.pending && module == rider.next};
  for (const PolicyRider& other : sweeps_.riders()) {
    if (&other == &rider || !Sweeps::IsLed(rider, other, module)) continue;
    claim.urgent = false;
    claim.next_use = std::max(claim.next_use, sweeps_.SecondsUntil(other, module));
  }
  return claim;
}

bool Policy::TryLoad(Device& device, const Claim& claim, Actions& actions) {
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
    if (!MakeRoom(key.memory, bytes, RoomFor(key.memory, claim.urgent), claim.next_use, Taking::kSpare, source,
                  /*insist=*/false, actions)) {
      continue;
    }
    Start(device, *claim.rider, claim.module, source, Place(key, bytes, /*streams=*/false), actions);
    return true;
  }
  const int64_t bytes = route.compute_bytes;
  const auto make_room = [&](const Copy* spare) {
    const int64_t room = RoomFor(device.memory, claim.urgent);
    return MakeRoom(device.memory, bytes, room, claim.next_use, Taking::kSpare, spare, false, actions) ||
           (claim.urgent &&
            MakeRoom(device.memory, bytes, room, claim.next_use, Taking::kAnything, spare, false, actions));
  };
  if (!claim.urgent &&
      Budget(device.memory).streaming_bytes + bytes > Sweeps::kAheadModules * Budget(device.memory).widest_bytes) {
    return false;
  }
  if (!make_room(source)) {
    // A source that stands in its module's way gives way itself; the next one is slower.
    if (!claim.urgent || source == nullptr || source->key.memory != device.memory || !make_room(nullptr)) return false;
    source = FindSource(itinerary, claim.module, &loading);
    if (source == nullptr && loading) return true;  // Read once: made from what arrives.
  }
  Copy& computable = Place({itinerary.weights, claim.module, route.compute, device.memory}, bytes, /*streams=*/true);
  Start(device, *claim.rider, claim.module, source, computable, actions);
  return true;
}

Copy* Policy::FindSource(const Itinerary& itinerary, ModuleIndex module, bool* loading) const {
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

Copy& Policy::Place(const CopyKey& key, int64_t bytes, bool streams) {
  MemoryBudget& budget = Budget(key.memory);
  // What the cache has less of lies in pieces, which cost more than fresh memory does: so the cache stays below the
  // largest copy where the budget is no reason to use it up.
  const bool grows = budget.cached_bytes < bytes && budget.used_bytes() + bytes <= budget.force_bytes();
  const int64_t reused = grows ? 0 : std::min(bytes, budget.cached_bytes);
  budget.cached_bytes -= reused;
  budget.copy_bytes += bytes;
  if (streams) budget.streaming_bytes += bytes;
  Copy& copy = copies_.Add(key, bytes, bytes - reused);
  copy.streams = streams;
  sweeps_.CopyCame(key);
  return copy;
}

void Policy::Start(Device& device, PolicyRider& rider, ModuleIndex module, Copy* source, Copy& computable,
                   Actions& actions) {
  Load load{device.memory, rider.id, source != nullptr ? Pin(*source) : Pin(), {}};
  AddStops(rider, module, source, load.targets, actions);
  load.targets.push_back(&computable);
  actions.push_back(StartLoad{next_load_, rider.itinerary->weights, module, device.memory, source, load.targets});
  loads_.emplace(next_load_++, std::move(load));
  ++device.loads;
}

// Copies at stops on the way, where there is room for them; they never wait for it. They are needed again only in the
// next sweep.
void Policy::AddStops(PolicyRider& rider, ModuleIndex module, const Copy* source, std::vector<Copy*>& targets,
                      Actions& actions) {
  const Itinerary& itinerary = *rider.itinerary;
  const Route& route = itinerary.route(module);
  const double next_use = sweeps_.SecondsUntil(rider, module) + itinerary.modules() * sweeps_.pace_seconds(itinerary);
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
    if (limited && DeviceUse(itinerary.device) + bytes > *itinerary.limit_bytes) continue;
    const int64_t room = RoomFor(key.memory, /*urgent=*/false);
    if (!MakeRoom(key.memory, bytes, room, next_use, Taking::kSpare, source, /*insist=*/false, actions)) continue;
    targets.push_back(&Place(key, bytes, /*streams=*/false));
  }
}

}  // namespace ditserve
