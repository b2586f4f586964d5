// The elder: whoever waited longest, and too long, gets what comes free, whoever else asks.
#include <algorithm>
#include <limits>
#include <utility>

#include "core/residency/policy.h"

namespace ditserve {
namespace {

// Less than any next use.
constexpr double kAnyUse = -1;

}  // namespace

bool Policy::ServeElder(Device& device, Actions& actions) {
  WatchHead(device);
  PolicyRider* const elder = FindElder(device);
  ReserveFor(device, elder);
  if (elder == nullptr) return false;
  if (!elder->admitted) {
    device.elder.bytes = elder->activation_bytes;
    if (TryAdmit(device, *elder, actions)) return true;
    return false;
  }
  return LoadForElder(device, *elder, actions);
}

PolicyRider* Policy::FindElder(Device& device) {
  PolicyRider* elder = nullptr;
  absl::Duration since;
  for (PolicyRider& rider : sweeps_.riders()) {
    if (rider.itinerary->device != device.memory) continue;
    const bool waits = rider.pending && (IsAged(rider) || device.elder.rider == &rider);
    const bool is_head = device.head == &rider && now_ - device.head_since >= options_.ageing;
    if (!waits && !is_head) continue;
    if (waits) {
      Copy* const copy = sweeps_.FindComputable(*rider.itinerary, rider.next);
      if (copy != nullptr && !copy->doomed) copies_.Promise(*copy, rider.id);
      if (copy != nullptr) continue;  // It is served: a copy that is doomed is promised, or goes and comes back.
    }
    const absl::Duration waits_since = is_head ? device.head_since : rider.since;
    if (elder == nullptr || waits_since < since) {
      elder = &rider;
      since = waits_since;
    }
  }
  return elder;
}

void Policy::ReserveFor(Device& device, const PolicyRider* rider) {
  if (device.elder.rider == rider) return;
  ClearDoom(device.memory);
  device.elder = {rider, 0};
  ++device.elder_turns;
}

// Looks for room as if the source were not needed: a source that stands in its module's way gives way itself, and the
// module is read from a slower one, at last from the checkpoint.
bool Policy::LoadForElder(Device& device, PolicyRider& rider, Actions& actions) {
  const Route& route = rider.itinerary->route(rider.next);
  const int64_t bytes = route.compute_bytes;
  device.elder.bytes = bytes;
  const size_t before = actions.size();
  bool loading = false;
  Copy* source = FindSource(*rider.itinerary, rider.next, &loading);
  const MemoryBudget& budget = Budget(device.memory);
  const auto drains = [&] { return rider.refused && budget.copy_bytes > 0 && budget.cached_bytes < bytes; };
  const auto room = [&] { return Room(device.memory); };
  device.elder.drains = drains();
  const bool blocks = source != nullptr && source->key.memory == device.memory;
  if (!MakeRoom(device.memory, bytes, room(), kAnyUse, Taking::kAnything, source, /*insist=*/true, actions) && blocks &&
      source->IsEvictable()) {
    Evict(*source, actions);
    source = FindSource(*rider.itinerary, rider.next, &loading);
  }
  device.elder.drains = drains();
  if (room() < bytes) {
    Doom(device, bytes - room());
    return actions.size() > before;
  }
  if (device.loads >= options_.max_loads) return actions.size() > before;
  // The module can be made from a copy of it that was to go: there is room without that. No other is spared, nor what
  // goes for another device's elder: who else leases and reads what goes would keep it from going.
  if (source == nullptr) {
    for (Copy* copy : copies_.Of(rider.itinerary->weights, rider.next)) {
      if (copy->key.memory == device.memory) copy->doomed = false;
    }
    source = FindSource(*rider.itinerary, rider.next, &loading);
  }
  if (source == nullptr && loading) return actions.size() > before;  // Read once: it is made from what arrives.
  ReserveFor(device, nullptr);
  const CopyKey key = {rider.itinerary->weights, rider.next, route.compute, device.memory};
  Copy& computable = Place(key, bytes, /*streams=*/!MayStay(key));
  Start(device, rider, rider.next, source, computable, actions);
  return true;
}

void Policy::Doom(const Device& device, int64_t bytes) {
  victims_.clear();
  for (const auto& copy : copies_.slots()) {
    if (copy == nullptr || copy->key.memory != device.memory) continue;
    if (copy->doomed) {
      bytes -= copy->bytes;
    } else {
      victims_.push_back({false, sweeps_.NextUse(*copy), copy.get()});
    }
  }
  std::sort(victims_.begin(), victims_.end(), [](const Victim& a, const Victim& b) {
    return a.next_use != b.next_use ? a.next_use > b.next_use : a.copy->id < b.copy->id;
  });
  for (const Victim& victim : victims_) {
    if (bytes <= 0) return;
    victim.copy->doomed = true;
    bytes -= victim.copy->bytes;
  }
}

void Policy::ClearDoom(Memory memory) {
  for (const auto& copy : copies_.slots()) {
    if (copy != nullptr && copy->key.memory == memory) copy->doomed = false;
  }
}

}  // namespace ditserve
